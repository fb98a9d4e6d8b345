"""`partial_row_statistics` and `RowState`: classes in shards, against the oracle and against the whole."""

import itertools
import math
import multiprocessing
import pickle
import re
import tracemalloc

import numpy as np
import pytest
import xent_rs
from xent_rs import RowState, partial_row_statistics, row_statistics

from .bounds import assert_within, entropy_bound, logsumexp_bound, loss_bound, probability_bound
from .cases import DTYPES, batch, targets_of
from .oracle import Softmax


def edges_of(cuts, classes):
    return itertools.pairwise([0, *sorted(cuts), classes])


def states(logits, cuts, targets=None, **options):
    """One for each shard."""
    classes = logits.shape[-1]
    return [
        partial_row_statistics(
            logits[..., start:stop], targets, class_offset=start, num_classes=classes, **options
        )
        for start, stop in edges_of(cuts, classes)
    ]


def merged(of_shards):
    """A new state: merging changes the one that takes others in."""
    first, *others = pickle.loads(pickle.dumps(of_shards))
    for other in others:
        assert first.merge(other) is first
    return first


def in_two_rounds(logits, cuts, targets, **options):
    known = merged(states(logits, cuts, targets, **options)).target_logit
    return merged(states(logits, cuts, targets, target_logit=known, **options)).result()


def same_bits(a, b):
    return all(x.tobytes() == y.tobytes() and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("transform", [(1.0, None), (0.7, None), (1.3, 30.0)], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 17, 130, 513, 4097])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_are_as_accurate_as_the_whole(dtype, classes, transform):
    temperature, softcap = transform
    logits, _, names = batch(classes, dtype)
    softmax = Softmax(logits, temperature, softcap)
    random = np.random.default_rng(classes)
    options = {"temperature": temperature, "softcap": softcap}
    for kind, targets in targets_of(softmax).items():
        cuts = random.integers(0, classes + 1, 3).tolist()
        found = in_two_rounds(logits, cuts, targets, **options)
        whole = row_statistics(logits, targets, **options)
        context = f"{classes} classes cut at {cuts}, {kind}"
        for field in ("argmax", "target_rank"):
            assert np.array_equal(getattr(found, field), getattr(whole, field)), (field, context)
        assert [values.dtype for values in found] == [values.dtype for values in whole]
        expected = {
            "logsumexp": (softmax.logsumexp, logsumexp_bound(softmax, dtype)),
            "target_log_probability": (-softmax.losses(targets), loss_bound(softmax, targets, dtype)),
            "entropy": (softmax.entropies, entropy_bound(softmax, dtype)),
            "max_probability": (
                softmax.probabilities.max(axis=1),
                probability_bound(softmax, dtype)[softmax.rows, softmax.top],
            ),
        }
        for field, (values, bound) in expected.items():
            assert_within(f"{field} of shards", getattr(found, field), values, bound, dtype, context, names)


def test_a_confident_row_keeps_its_digits():
    """A gap of 17, in one shard and between two: 4.14e-8, not 0."""
    logits = np.array([[17.0, 0.0, -np.inf], [0.0, 17.0, -np.inf]], np.float32)
    for cuts in ([1], [2], [1, 2], [1, 1, 2]):
        found = merged(states(logits, cuts, [0, 1])).result()
        np.testing.assert_allclose(-found.target_log_probability, math.log1p(math.exp(-17)), rtol=1e-7)
        np.testing.assert_allclose(found.entropy, 18 * math.exp(-17), rtol=1e-6)


@pytest.mark.parametrize("count", range(1, 17))
def test_no_order_of_merging_changes_a_bit(count):
    random = np.random.default_rng(count)
    logits = (5 * random.standard_normal((6, 5, 40))).astype(np.float32)
    targets = random.integers(40, size=(6, 5))
    targets[2, 3] = -100
    cuts = random.integers(0, 41, count - 1).tolist()
    known = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    shards = states(logits, cuts, targets, target_logit=known)
    expected = merged(shards).result()
    assert expected.target_rank[2, 3] == -1
    assert expected.target_log_probability[2, 3] == 0
    for _ in range(5):
        order = random.permutation(count)
        assert same_bits(merged([shards[number] for number in order]).result(), expected)
        # As a tree.
        half = [shards[number] for number in order]
        middle = int(random.integers(0, count + 1))
        parts = [merged(part) for part in (half[:middle], half[middle:]) if part]
        assert same_bits(merged(parts).result(), expected)


def special_rows():
    """Masked classes, a NaN, infinities, equal logits, targets in each third."""
    inf, nan = np.inf, np.nan
    rows = [
        [1, 2, 3, 4, 5, 6],
        [-inf, -inf, 3, 4, 5, 6],
        [-inf] * 6,
        [1, 2, nan, 4, 5, 6],
        [1, 2, 3, 4, inf, 6],
        [nan, inf, 3, nan, 5, 6],
        [7, 7, 7, 7, 7, 7],
        [-inf, -inf, -inf, -inf, -inf, 2],
        [1e8, 1e8, -inf, 0, 0, 0],
        [0, 5, 0, 5, 0, 5],
    ]
    return np.array(rows)


@pytest.mark.parametrize("cuts", [[2, 4], [1, 2, 3, 4, 5], [0, 0, 3, 6, 6], [5]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_like_others(dtype, cuts):
    logits = special_rows()
    logits = np.minimum(logits, 60000).astype(dtype) if dtype == np.float16 else logits.astype(dtype)
    for target in range(6):
        targets = np.full(len(logits), target)
        found, whole = in_two_rounds(logits, cuts, targets), row_statistics(logits, targets)
        for field, values in whole._asdict().items():
            np.testing.assert_allclose(
                getattr(found, field), values, rtol=3e-7, atol=3e-7, err_msg=f"{field} of target {target}"
            )


def test_ranks_need_the_logits_of_targets_in_a_round_of_their_own():
    logits, targets = np.array([[1.0, 3.0, 2.0, 3.0]]), [3]
    first = merged(states(logits, [2], targets))
    assert first.result().target_rank is None
    assert first.target_logit.tolist() == [3.0]
    assert in_two_rounds(logits, [2], targets).target_rank.tolist() == [1]
    # A shard with all classes has the target.
    assert merged(states(logits, [], targets)).result().target_rank.tolist() == [1]
    assert merged(states(logits, [0], targets)).result().target_rank.tolist() == [1]
    without = merged(states(logits, [2])).result()
    assert without.target_rank is None
    assert without.target_log_probability is None


def test_other_axes_and_samples():
    random = np.random.default_rng(0)
    logits, targets = random.standard_normal((3, 10, 4)), random.integers(10, size=(3, 4))
    parts = [
        partial_row_statistics(logits[:, cut], targets, class_offset=cut.start, num_classes=10, axis=1)
        for cut in (slice(6, 10), slice(0, 6))
    ]
    found, whole = merged(parts).result(), row_statistics(logits, targets, axis=1)
    for field in ("logsumexp", "argmax", "max_probability", "entropy", "target_log_probability"):
        np.testing.assert_allclose(getattr(found, field), getattr(whole, field), rtol=1e-14)
    single = merged(states(logits[0, :, 0], [3], 2)).result()
    assert single.logsumexp.shape == ()
    assert partial_row_statistics([1.0, 2.0], class_offset=0, num_classes=2).result().argmax == 1


def test_memory_is_that_of_some_rows_whatever_the_axis():
    """Nothing is copied but what is converted at a time, however the classes lie in memory."""
    logits = np.zeros((7, 4000, 440), np.float32)  # 47 MiB
    targets = np.zeros((7, 440), np.int64)
    for axis, shard, of in (
        (1, logits, targets),
        (0, logits.transpose(1, 2, 0), np.zeros((440, 7), np.int64)),
        (-1, logits.transpose(2, 0, 1), np.zeros((440, 7), np.int64)),
        (1, logits[:, ::2, ::-1], targets),
    ):
        options = {"class_offset": 0, "num_classes": shard.shape[axis], "axis": axis}
        tracemalloc.start()
        try:
            partial_row_statistics(shard, of, **options)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 6 << 20, f"axis {axis}: {peak / 2**20:.1f} MiB"


@pytest.mark.parametrize("axis", range(4))
def test_rows_are_in_the_order_of_c_however_they_lie(axis):
    random = np.random.default_rng(axis)
    whole = random.standard_normal((4, 6, 3, 5))
    for logits in (whole, np.asfortranarray(whole), whole[::2, ::-1], whole[:, 1:, ::2], whole[:1, :, :1]):
        classes = logits.shape[axis]
        last = np.ascontiguousarray(np.moveaxis(logits, axis, -1))
        targets = random.integers(classes, size=last.shape[:-1])
        for one in (False, True):  # one shard has all targets
            edges = [0, classes] if one else [0, classes // 2, classes]
            found, expected = (
                merged(
                    [
                        partial_row_statistics(
                            np.take(of, range(start, stop), along),
                            targets,
                            class_offset=start,
                            num_classes=classes,
                            axis=along,
                        )
                        for start, stop in itertools.pairwise(edges)
                    ]
                ).result()
                for of, along in ((logits, axis), (last, -1))
            )
            assert same_bits(filter_none(found), filter_none(expected))
            whole_rows = row_statistics(last, targets)
            assert np.array_equal(found.argmax, whole_rows.argmax)
            if one:
                assert np.array_equal(
                    partial_row_statistics(logits, targets, class_offset=0, num_classes=classes, axis=axis)
                    .result()
                    .target_rank,
                    whole_rows.target_rank,
                )


@pytest.mark.parametrize("dtype", np.typecodes["AllInteger"])
def test_targets_of_any_integer_dtype(dtype):
    logits = np.random.default_rng(0).standard_normal((5, 40))
    targets = np.array([0, 39, 99, 20, 99], dtype)
    found = in_two_rounds(logits, [10, 20], targets, ignore_index=99)
    expected = row_statistics(logits, targets, ignore_index=99)
    assert np.array_equal(found.target_rank, expected.target_rank)
    np.testing.assert_allclose(found.target_log_probability, expected.target_log_probability, rtol=1e-14)


@pytest.mark.parametrize("values", [1, 2, 3])
def test_ranks_among_equal_logits(values):
    """Of equal ones the first ranks higher, before the target's shard, in it and behind it."""
    random = np.random.default_rng(values)
    logits = random.integers(values, size=(200, 30)).astype(np.float32)
    targets = random.integers(30, size=200)
    targets[::7] = -100
    expected = row_statistics(logits, targets).target_rank
    for cuts in ([], [10, 20], [1], [29], list(range(1, 30))):
        assert np.array_equal(in_two_rounds(logits, cuts, targets).target_rank, expected)


def test_ranks_among_equal_logits_take_no_loop_over_rows(monkeypatch):
    """The target alone equals itself: nothing is looked for; and equal ones are counted at once."""
    calls, count_nonzero = [], np.count_nonzero
    monkeypatch.setattr(
        np, "count_nonzero", lambda *args, **kw: calls.append(1) or count_nonzero(*args, **kw)
    )
    for logits in (np.arange(40_000.0).reshape(1000, 40), np.zeros((1000, 40))):
        calls.clear()
        partial_row_statistics(logits, np.full(1000, 7), class_offset=0, num_classes=40)
        assert len(calls) < 10


def test_states_are_small_and_say_what_they_have():
    logits = np.zeros((1000, 4000), np.float32)
    state = partial_row_statistics(logits[:, :1000], class_offset=0, num_classes=4000)
    assert len(pickle.dumps(state)) < 50 * 1000
    assert repr(state) == "<RowState: 1000 rows, classes 0 to 999 of 4000>"
    state.merge(partial_row_statistics(logits[:, :1], class_offset=2000, num_classes=4000))
    assert repr(state) == "<RowState: 1000 rows, classes 0 to 999 and 2000 of 4000>"
    empty = partial_row_statistics(logits[:, :0], class_offset=7, num_classes=4000)
    assert repr(empty) == "<RowState: 1000 rows, no classes of 4000>"
    assert np.isnan(empty.target_logit).all()


def test_dtypes_of_results():
    wide, narrow = np.zeros((2, 3)), np.zeros((2, 3), np.float16)
    first = partial_row_statistics(narrow, class_offset=0, num_classes=6)
    second = partial_row_statistics(wide, class_offset=3, num_classes=6)
    assert first.merge(second).result().entropy.dtype == np.float64
    second = partial_row_statistics(narrow, class_offset=3, num_classes=6)
    first = partial_row_statistics(narrow, class_offset=0, num_classes=6)
    assert first.merge(second).result().entropy.dtype == np.float32


def _state_of(connection, logits, targets, offset, classes):
    known = connection.recv() if offset else None
    options = {"class_offset": offset, "num_classes": classes, "target_logit": known}
    connection.send(partial_row_statistics(logits, targets, **options))


def test_two_processes_over_a_pipe():
    random = np.random.default_rng(0)
    logits, targets = random.standard_normal((50, 30)).astype(np.float32), random.integers(30, size=50)
    known = logits[np.arange(50), targets]
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_state_of, args=(there, logits[:, 12:], targets, 12, 30))
    process.start()
    here.send(known)
    mine = partial_row_statistics(logits[:, :12], targets, class_offset=0, num_classes=30, target_logit=known)
    found = mine.merge(here.recv()).result()
    process.join()
    assert same_bits(found, in_two_rounds(logits, [12], targets))
    assert np.array_equal(found.target_rank, row_statistics(logits, targets).target_rank)


LOGITS, TARGETS = np.zeros((3, 4), np.float32), np.array([0, 1, 5])


def state(start=0, stop=4, targets=TARGETS, **options):
    given = {"class_offset": start, "num_classes": 8, **options}
    return partial_row_statistics(np.zeros((3, stop - start), np.float32), targets, **given)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: state(5, 9),
            ValueError,
            "class_offset is 5; expected 0 to 4 for 4 of num_classes 8 in the shard",
        ),
        (
            lambda: state(class_offset=-1),
            ValueError,
            "class_offset is -1; expected 0 to 4 for 4 of num_classes 8 in the shard",
        ),
        (
            lambda: state(num_classes=3),
            ValueError,
            "num_classes is 3; expected at least 4, the classes of the shard",
        ),
        (
            lambda: state(target_logit=np.zeros(3, complex)),
            TypeError,
            "target_logit has dtype complex128; expected real numbers",
        ),
        (
            lambda: state(target_logit=["0", "0", "0"]),
            TypeError,
            "target_logit has dtype <U1; expected real numbers",
        ),
        (
            lambda: state(target_logit=np.zeros(3, "m8[s]")),
            TypeError,
            "target_logit has dtype timedelta64[s]; expected real numbers",
        ),
        (lambda: state(num_classes=0), ValueError, "num_classes is 0; expected at least 1"),
        (lambda: state(num_classes=True), TypeError, "num_classes is True; expected an integer"),
        (lambda: state(class_offset=0.5), TypeError, "class_offset is 0.5; expected an integer"),
        (
            lambda: state(targets=[0, 1, 8]),
            IndexError,
            "targets[2] is 8; expected 0 to 7, or ignore_index -100",
        ),
        (
            lambda: state(targets=[0, 1]),
            ValueError,
            "targets have shape (2,); expected (3,), the shape of logits (3, 4) without axis -1",
        ),
        (
            lambda: state(targets=[0.0, 1.0, 2.0]),
            TypeError,
            "targets have dtype float64; expected an integer dtype (class indices)",
        ),
        (lambda: state(axis=2), ValueError, "axis is 2; expected -2 to 1 for logits of shape (3, 4)"),
        (lambda: state(softcap=-1), ValueError, "softcap is -1.0; expected a positive finite number"),
        (
            lambda: partial_row_statistics(np.zeros((3, 4), int), class_offset=0, num_classes=8),
            TypeError,
            "logits have dtype int64; expected float16, bfloat16, float32 or float64 "
            "(logits.astype(np.float32))",
        ),
        (
            lambda: partial_row_statistics(1.0, class_offset=0, num_classes=8),
            ValueError,
            "logits have shape (); expected at least one axis, the classes",
        ),
        (
            lambda: state(target_logit=[0.0, 2.0, 0.0]),
            ValueError,
            "target_logit[1] is 2.0; expected 0.0, the target's logit in this shard",
        ),
        (
            lambda: state(target_logit=[0.0]),
            ValueError,
            "target_logit has shape (1,); expected (3,), one number a row",
        ),
        (
            lambda: state(targets=None, target_logit=[0.0, 0.0, 0.0]),
            ValueError,
            "target_logit is given without targets; expected targets, whose logits they are",
        ),
        (
            lambda: state(sofcap=1),
            TypeError,
            "partial_row_statistics() got an unexpected keyword argument 'sofcap'. Did you mean 'softcap'?",
        ),
        (lambda: state().merge(1), TypeError, "other is of type int; expected a RowState"),
        (
            lambda: state().merge(state(3, 7)),
            ValueError,
            "other has classes 3 to 6; expected none of classes 0 to 3, which are in this state",
        ),
        (
            lambda: state().merge(state(3, 4)),
            ValueError,
            "other has class 3; expected none of classes 0 to 3, which are in this state",
        ),
        (
            lambda: state().merge(state(4, 8, temperature=2.0)),
            ValueError,
            "other has temperature 2.0; expected 1.0",
        ),
        (
            lambda: state().merge(state(4, 8, num_classes=9)),
            ValueError,
            "other has num_classes 9; expected 8",
        ),
        (
            lambda: state().merge(state(4, 8, targets=None)),
            ValueError,
            "other has no targets; expected them, as in this state",
        ),
        (
            lambda: state(targets=None).merge(state(4, 8)),
            ValueError,
            "other has targets; expected none, as in this state",
        ),
        (
            lambda: state().merge(state(4, 8, targets=[0, 1, 4])),
            ValueError,
            "other has other targets; expected those of this state",
        ),
        (
            lambda: state().merge(state(4, 8, target_logit=np.zeros(3))),
            ValueError,
            "other has a target_logit; expected none, as in this state",
        ),
        (
            lambda: state(4, 8, target_logit=np.zeros(3)).merge(state()),
            ValueError,
            "other has no target_logit; expected one, as in this state",
        ),
        (
            lambda: state().merge(
                partial_row_statistics(LOGITS[:2], TARGETS[:2], class_offset=4, num_classes=8)
            ),
            ValueError,
            "other has rows of shape (2,); expected (3,)",
        ),
        (
            lambda: state(1, 3).merge(state(4, 5)).result(),
            ValueError,
            "classes 0 and 3 and 5 to 7 are missing; expected all 8",
        ),
        (lambda: state(3, 3).result(), ValueError, "classes 0 to 7 are missing; expected all 8"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call()


def test_an_error_leaves_a_state_as_it_was():
    first, before = state(), state().merge(state(4, 8)).result()
    with pytest.raises(ValueError, match="classes 3 to 6"):
        first.merge(state(3, 7))
    assert same_bits(filter_none(first.merge(state(4, 8)).result()), filter_none(before))


def filter_none(statistics):
    return [values for values in statistics if values is not None]


@pytest.mark.parametrize("dtype", ["?", "b", "H", "q", ">f4", *DTYPES], ids=str)
def test_logits_of_targets_in_any_dtype_of_real_numbers(dtype):
    known = partial_row_statistics(
        np.array([[1.0, 0.0]], np.float32), [0], class_offset=0, num_classes=2, target_logit=np.ones(1, dtype)
    )
    assert known.result().target_rank == 0


def test_it_is_a_part_of_the_package():
    assert {"RowState", "partial_row_statistics"} <= set(xent_rs.__all__)
    assert isinstance(state(), RowState)
