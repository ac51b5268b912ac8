"""Pascal VOC: one XML file per image; the splits are lists in ``ImageSets/Main`` or folders.

The coordinates are read as they are. VOC's own images count pixels from 1, most labeling tools from 0; the difference
of one pixel is smaller than the accuracy of the boxes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from xml.etree import ElementTree

from mmplugin.data.layouts.partition import SPLIT_NAMES, by_lists, split_of_folder
from mmplugin.data.layouts.records import Object, Reading, Record, finite, image_size, read_each, require_images
from mmplugin.data.layouts.tree import Tree, nearest, stem
from mmplugin.data.splits import sample
from mmplugin.errors import UserError
from mmplugin.text import some

MASK_FOLDERS = ('SegmentationClass', 'SegmentationObject')  # VOC's masks have the names of the images


class _Builder(ElementTree.TreeBuilder):
    """A builder that refuses document types, which can define entities that expand without limit."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError('it has a DOCTYPE, which annotations do not need')


def _parse(tree: Tree, name: str) -> ElementTree.Element:
    try:
        parser = ElementTree.XMLParser(target=_Builder())
        parser.feed(tree.text(name))
        return parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f'{tree.root / name} is not valid XML ({error}); correct or remove it') from error


def find(tree: Tree) -> list[str]:
    """Return the annotation files; a few of them are opened."""
    files = tree.select('.xml')

    def is_voc(name: str) -> bool:
        try:
            return _parse(tree, name).tag == 'annotation'
        except UserError:
            return True  # named as damaged when it is read

    return files if any(map(is_voc, sample(files))) else []


def read(tree: Tree, classes: list[str] | None = None) -> Reading:
    """Read all annotated images. The classes are in alphabetical order."""
    image_of = _images(tree)
    splits = _lists(tree)
    skipped: Counter[str] = Counter()
    missing: list[str] = []
    others: list[str] = []
    used: set[str] = set()

    def record(name: str) -> Record | None:
        node = _parse(tree, name)
        if node.tag != 'annotation':
            others.append(name)
            return None
        image = image_of(name, (node.findtext('filename') or '').strip())
        if image is None:
            missing.append(name)
            return None
        used.add(image)
        width, height = image_size(tree.root / image)
        objects = []
        for child in node.findall('object'):
            try:
                objects.append(_object(child))
            except _EmptyBoxError:
                skipped[name] += 1
            except (TypeError, ValueError, AttributeError) as error:
                raise UserError(f'{tree.root / name}: {error}; correct it') from error
        split = splits.get(stem(name), '') if splits else split_of_folder(image) or split_of_folder(name)
        return Record(image, width, height, objects, split)

    records = [found for found in read_each(record, tree.select('.xml'), 'annotations') if found]
    require_images(sorted(missing), 'Image and annotation have the same name')
    names = sorted({found.label for item in records for found in item.objects})
    warnings = _warnings(tree, used, skipped)
    if others:
        warnings.append(f'XML files in another layout, which are not used: {some(sorted(others))}')
    return Reading(records, names, warnings)


def _warnings(tree: Tree, used: set[str], skipped: Counter[str]) -> list[str]:
    warnings = []
    unused = [name for name in tree.images if name not in used and not set(MASK_FOLDERS) & set(name.split('/'))]
    if unused:
        warnings.append(f'images without an annotation file, which are not used ({len(unused)}): {some(unused)}')
    if skipped:
        warnings.append(f'boxes without area, which are skipped ({skipped.total()}): in {some(sorted(skipped))}')
    return warnings


def _images(tree: Tree) -> Callable[[str, str], str | None]:
    """Return a function that finds the image of an annotation file, given its path and the name that it states."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in tree.images:
        if not set(MASK_FOLDERS) & set(image.split('/')):
            by_stem[stem(image)].append(image)
            by_name[image.rpartition('/')[2]].append(image)

    def find_image(name: str, stated: str) -> str | None:
        stated = stated.replace('\\', '/').rpartition('/')[2]
        candidates = nearest(name, by_stem.get(stem(name)) or by_name.get(stated, []))
        if len(candidates) > 1:
            candidates = [path for path in candidates if path.rpartition('/')[2] == stated] or candidates
        if len(candidates) > 1:
            raise UserError(f'{tree.root / name} may belong to {some(candidates)}; remove or rename all but one')
        return candidates[0] if candidates else None

    return find_image


def _lists(tree: Tree) -> dict[str, str]:
    """Return the split by stem, from the lists in ``ImageSets/Main``."""
    lists: dict[str, list[str]] = {}
    for split, words in (*SPLIT_NAMES.items(), ('trainval', ('trainval',))):
        for name in tree.select(*(f'imagesets/main/{word}.txt' for word in words)):
            stems = [line.split()[0] for line in tree.text(name).splitlines() if line.strip()]
            lists.setdefault(split, []).extend(stems)
    if not lists.get('train') and lists.get('trainval'):
        lists['train'] = lists['trainval']
    return by_lists(lists)


class _EmptyBoxError(ValueError):
    """A box without area."""


def _object(node: ElementTree.Element) -> Object:
    label = (node.findtext('name') or '').strip()
    if not label:
        raise ValueError('an object has no name')
    box = node.find('bndbox')
    if box is None:
        raise ValueError(f'{label!r} has no bndbox')
    left, top, right, bottom = (finite(box.findtext(side)) for side in ('xmin', 'ymin', 'xmax', 'ymax'))
    if left > right or top > bottom:
        raise ValueError(f'{label!r} has a box from ({left:g}, {top:g}) to ({right:g}, {bottom:g})')
    if left == right or top == bottom:
        raise _EmptyBoxError
    difficult = (node.findtext('difficult') or '').strip() == '1'
    return Object(label, (left, top, right - left, bottom - top), ignored=difficult)
