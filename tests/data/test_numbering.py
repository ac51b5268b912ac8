"""Which value of a mask is which class: for any number of classes, no label is shifted in silence."""

from itertools import product

import pytest

from mmplugin.data.layouts.numbering import IGNORED, Numbering, number_classes, number_explicitly, suggestions
from mmplugin.errors import UserError


def _conventions(count: int) -> dict[str, dict[int, int]]:
    """Return the label by value in the conventions of published data sets with ``count`` named classes."""
    zero_based = {i: i for i in range(count)}
    one_based = {i + 1: i for i in range(count)}
    return {
        'all pixels labeled': zero_based,
        'unlabelled 255': zero_based | {IGNORED: IGNORED},
        'unlabelled 0': one_based | {0: IGNORED},
        'unlabelled 0 and 255': one_based | {0: IGNORED, IGNORED: IGNORED},
        'unlabelled last': zero_based | {count: IGNORED},
        'unlabelled last and 255': zero_based | {count: IGNORED, IGNORED: IGNORED},
        'from 1': one_based,
        'from 1, unlabelled 255': one_based | {IGNORED: IGNORED},
        'multiples of 10': {10 * i: i for i in range(count)},
    }


CERTAIN = ('all pixels labeled', 'unlabelled 255', 'from 1', 'from 1, unlabelled 255')


@pytest.mark.parametrize('count', [1, 2, 3, 5, 10, 11, 19, 20, 21, 25])
@pytest.mark.parametrize('name', _conventions(2))
def test_the_understood_numbering_is_the_true_one_or_a_question(count: int, name: str):
    labels = _conventions(count)[name]
    try:
        numbering = number_classes(sorted(labels), [f'class {i}' for i in range(count)])
    except UserError:
        assert name not in CERTAIN or (count == 1 and 'unlabelled 255' in name)
    else:
        assert dict(numbering.labels) == labels


@pytest.mark.parametrize('count', [2, 3, 11, 21, 150, 253])
def test_every_answer_leads_to_its_numbering(count: int):
    names = [f'class {i}' for i in range(count)]
    for name, unlabelled in (('unlabelled 0', 0), ('unlabelled 0 and 255', 0), ('unlabelled last', count)):
        labels = _conventions(count)[name]
        numbering = number_classes(sorted(labels), names, [unlabelled])
        assert dict(numbering.labels) == labels
        assert numbering.reduces_zero == (unlabelled == 0)
        assert numbering.is_identity == (unlabelled != 0 and count == IGNORED)
        assert any(text.startswith(f'--unlabelled {unlabelled}') for text in suggestions(sorted(labels), names))


@pytest.mark.parametrize('absent', range(1, 11))
def test_an_absent_class_is_a_question_unless_unlabelled_is_given(absent: int):
    """With 0 unlabelled and one of 11 classes absent, there are 11 values for 11 names."""
    names = [f'class {i}' for i in range(11)]
    labels = {value: label for value, label in _conventions(11)['unlabelled 0'].items() if value != absent}
    with pytest.raises(UserError, match=r'11 class names for 1[01] values'):
        number_classes(sorted(labels), names)
    assert dict(number_classes(sorted(labels), names, [0]).labels) == labels


def test_an_answer_that_leaves_the_first_number_open_is_a_question():
    """Without 0 in the masks, the classes may be numbered from 0 or from 1."""
    names = ['a', 'b', 'c', 'd']
    with pytest.raises(UserError, match='4 class names for 2 values, 2 to 3'):
        number_classes([2, 3], names, [IGNORED])
    assert number_classes([2, 3], names, [0]).labels == {2: 1, 3: 2}
    assert number_classes([2, 4], names, [IGNORED]).labels == {2: 1, 4: 3}
    assert number_classes([0, 3], names, [IGNORED]).labels == {0: 0, 3: 3}


def test_names_of_unlabelled_values_in_the_middle_do_not_shift_the_others():
    names = ['a', 'b', 'c']
    assert number_classes([0, 1, 2, 3], names, [1]).labels == {0: 0, 2: 1, 3: 2, 1: IGNORED}
    with pytest.raises(UserError, match='3 class names for 2 values'):  # or was b the name of the unlabelled value?
        number_classes([0, 1, 2], names, [1])


def test_explicit_numbers_are_taken_as_they_are():
    numbering = number_explicitly([0, 7, 8, 255], {7: 'road', 8: 'road', 0: 'car'})
    assert numbering == Numbering(('road', 'car'), {0: 1, 7: 0, 8: 0, 255: IGNORED})
    assert number_explicitly([0, 255], {0: 'a', 255: 'b'}).labels == {0: 0, 255: 1}
    assert number_explicitly([0, 255], {0: 'black', 255: 'blue'}, color=True).labels == {0: 0, 255: 1}
    with pytest.raises(UserError, match='without a name: 8'):
        number_explicitly([7, 8], {7: 'road'})
    with pytest.raises(UserError, match='no mask has this value'):
        number_classes([0, 1], ['a', 'b'], [9])


def test_two_numberings_need_no_new_masks():
    for count, zero in product((2, 150), (True, False)):
        labels = _conventions(count)['unlabelled 0 and 255' if zero else 'unlabelled 255']
        numbering = Numbering(tuple(map(str, range(count))), labels)
        assert (numbering.reduces_zero, numbering.is_identity) == (zero, not zero)
