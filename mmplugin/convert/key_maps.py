"""Names of weights elsewhere: one ordered rule table a format, from our names to theirs.

Every rule is a regular expression and its replacement, applied one after the other. The tables start from our names
because those are complete: the same table finds the weights in a foreign file and writes them back. Names of the
classification head are those of :class:`mmplugin.convert.classifier.Classifier`.
"""

import re
from collections.abc import Callable

Rule = tuple[str, str | Callable[[re.Match], str]]


def renamer(rules: list[Rule]) -> Callable[[str], str]:
    """The function that applies a rule table to one name."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(key: str) -> str:
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        return key

    return rename


def _network(offset: int) -> Callable[[re.Match], str]:
    """The originals number stages and the downsampling between them in one list: 0, 2, 4, 6 are the stages."""
    return lambda match: f'network.{2 * int(match[1]) + offset}.'


def _after_flatten(first_attention: int) -> Callable[[re.Match], str]:
    """In V1, a layer that flattens the map counts as a block of its own, before the first attention block."""
    return lambda match: f'stages.3.blocks.{int(match[1]) + (int(match[1]) >= first_attention)}.'


def original_v1(settings: dict) -> list[Rule]:
    return [
        (r'^stages\.3\.blocks\.(\d+)\.', _after_flatten(settings['depths'][3] - settings['attention_blocks'])),
        (r'^stem\.0\.conv\.', 'patch_embed.0.'),
        (r'^stem\.0\.norm\.', 'patch_embed.1.'),
        (r'^stem\.2\.conv\.', 'patch_embed.3.'),
        (r'^stem\.2\.norm\.', 'patch_embed.4.'),
        (r'^stages\.(\d)\.downsample\.', _network(-1)),
        (r'^(network\.\d)\.conv\.', r'\1.proj.'),
        (r'^stages\.(\d)\.blocks\.', _network(0)),
        (r'\.mlp\.fc([12])\.norm\.', r'.mlp.norm\1.'),
        (r'\.mlp\.fc([12])\.conv\.', r'.mlp.fc\1.'),
        (r'\.table$', ''),
        (r'^out_norms\.(\d)\.', lambda match: f'norm{2 * int(match[1])}.'),
        (r'^head_dist\.', 'dist_head.'),
    ]


def original_v2(settings: dict) -> list[Rule]:
    return [
        (r'^stem\.0\.conv\.', 'patch_embed.0.'),
        (r'^stem\.0\.norm\.', 'patch_embed.1.'),
        (r'^stem\.2\.conv\.', 'patch_embed.3.'),
        (r'^stem\.2\.norm\.', 'patch_embed.4.'),
        (r'\.(q|k|v|v_local|stride_conv|q\.proj)\.conv\.', r'.\1.0.'),
        (r'\.(q|k|v|v_local|stride_conv|q\.proj)\.norm\.', r'.\1.1.'),
        (r'\.proj\.conv\.', '.proj.1.'),
        (r'\.proj\.norm\.', '.proj.2.'),
        (r'\.q\.local\.', '.q.local.0.'),
        (r'^stages\.3\.downsample\.conv\.conv\.', 'network.5.conv.'),
        (r'^stages\.3\.downsample\.conv\.norm\.', 'network.5.bn.'),
        (r'^stages\.(\d)\.downsample\.conv\.', _network(-1)),
        (r'^stages\.(\d)\.downsample\.', _network(-1)),
        (r'^(network\.[13])\.conv\.', r'\1.proj.'),
        (r'^stages\.(\d)\.blocks\.', _network(0)),
        (r'\.mlp\.fc([12])\.norm\.', r'.mlp.norm\1.'),
        (r'\.mlp\.fc([12])\.conv\.', r'.mlp.fc\1.'),
        (r'\.mlp\.mid\.norm\.', '.mlp.mid_norm.'),
        (r'\.mlp\.mid\.conv\.', '.mlp.mid.'),
        (r'\.table$', ''),
        (r'^head_dist\.', 'dist_head.'),
    ]


def original_evit(settings: dict) -> list[Rule]:
    return [
        (r'^stem\.', 'patch_embed.'),
        (r'^stages\.0\.blocks\.', 'blocks1.'),
        (r'^stages\.(\d)\.blocks\.(\d+)\.', lambda match: f'blocks{int(match[1]) + 1}.{int(match[2]) + 3}.'),
        (r'^stages\.(\d)\.downsample\.', lambda match: f'blocks{int(match[1]) + 1}.'),
        (r'^(blocks\d)\.dw0\.', r'\1.0.0.m.'),
        (r'^(blocks\d)\.ffn0\.', r'\1.0.1.m.'),
        (r'^(blocks\d)\.merge\.', r'\1.1.'),
        (r'^(blocks\d)\.dw1\.', r'\1.2.0.m.'),
        (r'^(blocks\d)\.ffn1\.', r'\1.2.1.m.'),
        (r'\.(dw[01]|ffn[01])\.', r'.\1.m.'),
        (r'\.mixer\.', '.mixer.m.attn.'),
        (r'\.attn\.proj\.', '.attn.proj.1.'),
        (r'\.conv\.', '.c.'),
        (r'\.norm\.', '.bn.'),
        (r'\.table$', ''),
        (r'^(head|head_dist)\.linear\.', r'\1.l.'),
    ]


def dense(rules: Callable[[dict], list[Rule]]) -> Callable[[dict], list[Rule]]:
    """V1's and V2's dense code learns its bias in a second table, beside the one from ImageNet that it ignores."""
    return lambda settings: [*rules(settings), (r'\.attention_biases$', '.attention_biases_seg')]


def timm_v1(settings: dict) -> list[Rule]:
    return [
        (r'^stages\.3\.blocks\.(\d+)\.', _after_flatten(settings['depths'][3] - settings['attention_blocks'])),
        (r'^stem\.0\.(conv|norm)\.', r'stem.\g<1>1.'),
        (r'^stem\.2\.(conv|norm)\.', r'stem.\g<1>2.'),
        (r'\.mlp\.fc([12])\.norm\.', r'.mlp.norm\1.'),
        (r'\.mlp\.fc([12])\.conv\.', r'.mlp.fc\1.'),
        (r'\.layer_scale_([12])$', r'.ls\1.gamma'),
        (r'\.table$', ''),
    ]


def timm_v2(settings: dict) -> list[Rule]:
    return [
        (r'^stem\.0\.', 'stem.conv1.'),
        (r'^stem\.2\.', 'stem.conv2.'),
        (r'\.norm\.', '.bn.'),
        (r'\.layer_scale_([12])$', r'.ls\1.gamma'),
        (r'\.table$', ''),
    ]


def timm_evit(settings: dict) -> list[Rule]:
    return [
        (r'^stem\.(\d)\.', lambda match: f'patch_embed.conv{int(match[1]) // 2 + 1}.'),
        (r'\.downsample\.dw0\.', '.downsample.res1.0.m.'),
        (r'\.downsample\.ffn0\.', '.downsample.res1.1.m.'),
        (r'\.downsample\.merge\.', '.downsample.patchmerge.'),
        (r'\.downsample\.dw1\.', '.downsample.res2.0.m.'),
        (r'\.downsample\.ffn1\.', '.downsample.res2.1.m.'),
        (r'\.(dw[01]|ffn[01])\.', r'.\1.m.'),
        (r'\.mixer\.', '.mixer.m.attn.'),
        (r'\.attn\.proj\.', '.attn.proj.1.'),
        (r'\.norm\.', '.bn.'),
        (r'\.table$', ''),
    ]


def mmpretrain_v1(settings: dict) -> list[Rule]:
    return [
        (r'^stages\.3\.blocks\.(\d+)\.', _after_flatten(settings['depths'][3] - settings['attention_blocks'])),
        # One list a stage, with the downsampling that stages 2 to 4 have in front.
        (r'^stages\.([123])\.blocks\.(\d+)\.', lambda match: f'network.{match[1]}.{int(match[2]) + 1}.'),
        (r'^stages\.0\.blocks\.', 'network.0.'),
        (r'^stages\.(\d)\.downsample\.', r'network.\1.0.'),
        (r'^stem\.0\.', 'patch_embed.0.'),
        (r'^stem\.2\.', 'patch_embed.1.'),
        (r'\.mlp\.fc([12])\.norm\.', r'.mlp.norm\1.'),
        (r'\.mlp\.fc([12])\.conv\.', r'.mlp.fc\1.'),
        (r'\.norm\.', '.bn.'),
        (r'\.layer_scale_([12])$', r'.ls\1.weight'),
        (r'\.table$', ''),
        (r'^out_norms\.(\d)\.', r'norm\1.'),
        (r'^norm\.', 'norm3.'),
        (r'^head_dist\.', 'head.dist_head.'),
        (r'^head\.(weight|bias)$', r'head.head.\1'),
    ]


def ours(settings: dict) -> list[Rule]:
    return []
