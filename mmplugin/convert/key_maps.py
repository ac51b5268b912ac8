"""Key maps: for each format, an ordered table of rules from mmplugin's keys to the keys of that format.

A rule is a regular expression and its replacement. The rules of a table are applied one after the other. The same table
is used in both directions: to find the tensors in a file, and to write them. Keys of the classification head are those
of ``mmplugin.convert.classifier.Classifier``.
"""

import re
from collections.abc import Callable

Rule = tuple[str, str | Callable[[re.Match], str]]

_TABLE: list[Rule] = [(r'\.table$', '')]
_DISTILLATION_HEAD: list[Rule] = [(r'^head_dist\.', 'dist_head.')]
_MLP: list[Rule] = [
    (r'\.mlp\.fc([12])\.norm\.', r'.mlp.norm\1.'),
    (r'\.mlp\.fc([12])\.conv\.', r'.mlp.fc\1.'),
]
_FLAT_STEM: list[Rule] = [
    (r'^stem\.0\.conv\.', 'patch_embed.0.'),
    (r'^stem\.0\.norm\.', 'patch_embed.1.'),
    (r'^stem\.2\.conv\.', 'patch_embed.3.'),
    (r'^stem\.2\.norm\.', 'patch_embed.4.'),
]
_TIMM_LAYER_SCALE: list[Rule] = [(r'\.layer_scale_([12])$', r'.ls\1.gamma')]
_EVIT_BLOCK: list[Rule] = [
    (r'\.(dw[01]|ffn[01])\.', r'.\1.m.'),
    (r'\.mixer\.', '.mixer.m.attn.'),
    (r'\.attn\.proj\.', '.attn.proj.1.'),
]


def renamer(rules: list[Rule]) -> Callable[[str], str]:
    """Return a function that applies a table of rules to one key."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(key: str) -> str:
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        return key

    return rename


def _network(offset: int) -> Callable[[re.Match], str]:
    """Number the stages 0, 2, 4, 6, and the downsampling between them 1, 3, 5."""
    return lambda match: f'network.{2 * int(match[1]) + offset}.'


def _flatten_block(settings: dict) -> list[Rule]:
    """Count V1's flattening before the first attention block as a block."""
    first_attention = settings['depths'][3] - settings['attention_blocks']

    def renumber(match: re.Match) -> str:
        block = int(match[1])
        return f'stages.3.blocks.{block + 1 if block >= first_attention else block}.'

    return [(r'^stages\.3\.blocks\.(\d+)\.', renumber)]


def original_v1(settings: dict) -> list[Rule]:
    """Return the rules for EfficientFormer in its authors' repository."""
    return [
        *_flatten_block(settings),
        *_FLAT_STEM,
        (r'^stages\.(\d)\.downsample\.', _network(-1)),
        (r'^(network\.\d)\.conv\.', r'\1.proj.'),
        (r'^stages\.(\d)\.blocks\.', _network(0)),
        *_MLP,
        *_TABLE,
        (r'^out_norms\.(\d)\.', lambda match: f'norm{2 * int(match[1])}.'),
        *_DISTILLATION_HEAD,
    ]


def original_v2(settings: dict) -> list[Rule]:
    """Return the rules for EfficientFormerV2 in its authors' repository."""
    return [
        *_FLAT_STEM,
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
        *_MLP,
        (r'\.mlp\.mid\.norm\.', '.mlp.mid_norm.'),
        (r'\.mlp\.mid\.conv\.', '.mlp.mid.'),
        *_TABLE,
        *_DISTILLATION_HEAD,
    ]


def original_evit(settings: dict) -> list[Rule]:
    """Return the rules for Microsoft's EfficientViT in its authors' repository."""
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
        *_EVIT_BLOCK,
        (r'\.conv\.', '.c.'),
        (r'\.norm\.', '.bn.'),
        *_TABLE,
        (r'^(head|head_dist)\.linear\.', r'\1.l.'),
    ]


def dense(rules: Callable[[dict], list[Rule]]) -> Callable[[dict], list[Rule]]:
    """Adapt the rules to the authors' dense code, which trains a second table and ignores the one from ImageNet."""
    return lambda settings: [*rules(settings), (r'\.attention_biases$', '.attention_biases_seg')]


def timm_v1(settings: dict) -> list[Rule]:
    """Return the rules for EfficientFormer in timm."""
    return [
        *_flatten_block(settings),
        (r'^stem\.0\.(conv|norm)\.', r'stem.\g<1>1.'),
        (r'^stem\.2\.(conv|norm)\.', r'stem.\g<1>2.'),
        *_MLP,
        *_TIMM_LAYER_SCALE,
        *_TABLE,
    ]


def timm_v2(settings: dict) -> list[Rule]:
    """Return the rules for EfficientFormerV2 in timm."""
    return [
        (r'^stem\.0\.', 'stem.conv1.'),
        (r'^stem\.2\.', 'stem.conv2.'),
        (r'\.norm\.', '.bn.'),
        *_TIMM_LAYER_SCALE,
        *_TABLE,
    ]


def timm_evit(settings: dict) -> list[Rule]:
    """Return the rules for Microsoft's EfficientViT in timm."""
    return [
        (r'^stem\.(\d)\.', lambda match: f'patch_embed.conv{int(match[1]) // 2 + 1}.'),
        (r'\.downsample\.dw0\.', '.downsample.res1.0.m.'),
        (r'\.downsample\.ffn0\.', '.downsample.res1.1.m.'),
        (r'\.downsample\.merge\.', '.downsample.patchmerge.'),
        (r'\.downsample\.dw1\.', '.downsample.res2.0.m.'),
        (r'\.downsample\.ffn1\.', '.downsample.res2.1.m.'),
        *_EVIT_BLOCK,
        (r'\.norm\.', '.bn.'),
        *_TABLE,
    ]


def mmpretrain_v1(settings: dict) -> list[Rule]:
    """Return the rules for EfficientFormer in mmpretrain."""
    return [
        *_flatten_block(settings),
        # Each stage is one list, which starts with the downsampling in stages 2 to 4.
        (r'^stages\.([123])\.blocks\.(\d+)\.', lambda match: f'network.{match[1]}.{int(match[2]) + 1}.'),
        (r'^stages\.0\.blocks\.', 'network.0.'),
        (r'^stages\.(\d)\.downsample\.', r'network.\1.0.'),
        (r'^stem\.0\.', 'patch_embed.0.'),
        (r'^stem\.2\.', 'patch_embed.1.'),
        *_MLP,
        (r'\.norm\.', '.bn.'),
        (r'\.layer_scale_([12])$', r'.ls\1.weight'),
        *_TABLE,
        (r'^out_norms\.(\d)\.', r'norm\1.'),
        (r'^norm\.', 'norm3.'),
        (r'^head_dist\.', 'head.dist_head.'),
        (r'^head\.(weight|bias)$', r'head.head.\1'),
    ]


def mmplugin(settings: dict) -> list[Rule]:
    """Return the rules for mmplugin's own format, which has none."""
    return []
