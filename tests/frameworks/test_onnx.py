"""`compare` on a real pair of models: a network that reads text, of 6,625 classes, and its quantised twin.

The network is a part of the package rapidocr-onnxruntime; ONNX Runtime quantises its matrix products to
8 bits.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from xent_rs import compare

from ..test_comparison import assert_every_figure, assert_figures_of_llama_cpp

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none of which looks like another
NUMBER, LENGTH, SHAPE = 24, 12, (48, 320)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The files of both networks, without the last softmax, and the characters of their classes."""
    onnx = pytest.importorskip("onnx", reason="ONNX is not installed: pip install onnx")
    reason = "ONNX Runtime is not installed: pip install onnxruntime"
    pytest.importorskip("onnxruntime", reason=reason)
    quantization = pytest.importorskip("onnxruntime.quantization", reason=reason)
    package = importlib.util.find_spec("rapidocr_onnxruntime")  # for its file: nothing of it is run
    if package is None:
        pytest.skip("there is no network to quantise: pip install rapidocr-onnxruntime")
    model = onnx.load(Path(package.origin).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx")
    graph, (characters,) = model.graph, (each.value for each in model.metadata_props)
    softmax = graph.node[-1]
    assert (softmax.op_type, softmax.output[0]) == ("Softmax", graph.output[0].name)
    graph.output[0].name = softmax.input[0]
    graph.node.remove(softmax)
    # Its weights are nodes; the quantiser wants initialisers.
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)
    folder = tmp_path_factory.mktemp("networks")
    files = {name: folder / f"{name}.onnx" for name in ("whole", "int8")}
    onnx.save(model, files["whole"])
    # Of the convolutions, too, and nothing that it reads is right.
    quantization.quantize_dynamic(files["whole"], files["int8"], op_types_to_quantize=["MatMul"])
    return files, ["", *characters.split("\n"), " "]


@pytest.fixture(scope="module")
def pair(networks):
    """The logits of both on drawn texts, in float64, and the targets; a row for each step along an image."""
    import onnxruntime

    image, draw, font = (
        pytest.importorskip(f"PIL.{name}", reason="texts are drawn by Pillow: pip install pillow")
        for name in ("Image", "ImageDraw", "ImageFont")
    )
    random = np.random.default_rng(0)
    texts = ["".join(random.choice([*LETTERS], size=LENGTH)) for _ in range(NUMBER)]
    pictures = []
    for text in texts:
        picture = image.new("RGB", SHAPE[::-1], "white")
        draw.Draw(picture).text((6, 6), text, fill="black", font=font.load_default(28))
        pictures.append(np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    files, characters = networks
    logits = {}
    for name, file in files.items():
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits[name],) = session.run(None, {session.get_inputs()[0].name: np.stack(pictures)})
    # Which class a step has is known where the whole network reads what was drawn.
    targets = logits["whole"].argmax(axis=-1)
    right = np.array([read(steps, characters) == text for steps, text in zip(targets, texts, strict=True)])
    assert NUMBER / 2 < right.sum() < NUMBER
    targets[~right] = -100
    classes = len(characters)
    assert classes > 6000
    steps = targets.shape[1]
    return [logits[name].reshape(-1, classes) for name in files], targets.reshape(-1), steps


def read(steps, characters):
    """What a row of classes says: a class after itself says nothing more, and the first never anything."""
    changes = steps[np.diff(steps, prepend=0) != 0]
    return "".join(characters[step] for step in changes).strip()


@pytest.mark.parametrize("grouped", [False, True])
def test_every_figure(pair, grouped):
    logits, targets, steps = pair
    reference, candidate = (values.astype(np.float64) for values in logits)
    options = {"groups": np.arange(len(targets)) // steps} if grouped else {}
    found = compare(reference, candidate, targets, **options)
    assert 1e-3 < found.kl.value < 1e-2
    assert found.kl_min < 1e-6
    assert 0.9 < found.same_top.value < 1
    assert_every_figure(found, reference, candidate, targets, **options)
    # As they are, in float32: with its digits of a row's loss, of a difference those of its parts.
    single = compare(*logits, targets, **options)
    assert single.as_dict() == pytest.approx(found.as_dict(), rel=1e-5, abs=1e-9)


def test_the_figures_of_llama_cpp(pair):
    logits, targets, _ = pair
    counts = targets != -100
    reference, candidate = (values[counts].astype(np.float64) for values in logits)
    found = compare(reference, candidate, targets[counts])
    assert_figures_of_llama_cpp(found, reference, candidate, targets[counts])


def test_a_model_and_itself(pair):
    (reference, _), targets, _ = pair
    found = compare(reference, reference.copy(), targets).as_dict()
    beginnings = ("kl", "reverse_kl", "jensen", "loss_change", "delta_p")
    changes = [name for name in found if name.startswith(beginnings)]
    assert len(changes) > 30
    assert {found[name] for name in changes} == {0.0}
