"""ONNX's own test cases, run through `tinydiff.ops`: an outside opinion on every operation that both have.

The `onnx` package holds a model, inputs and expected outputs for each case. Each model's nodes are evaluated by the
adapters of onnx_operators.py. Cases that do not apply have a reason, their operator's in `NOT_OURS` or the one that its
adapter gives; the last test prints how many cases ran and why the others did not.
"""

import collections
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.parity import onnx_layers  # noqa: F401  registers its operators
from tests.parity.onnx_operators import ADAPTERS, NotApplicable, array, integers
from tinydiff.autograd.tensor import Tensor

pytestmark = pytest.mark.parity
onnx = pytest.importorskip("onnx")

# What holds a model together but computes nothing that is tinydiff's: allowed beside adapted nodes, never alone

PLUMBING = {
    "Identity": lambda attributes, x: x,
    "Constant": lambda attributes: constant(attributes),
    "Shape": lambda attributes, x: np.int64(array(x).shape[attributes.get("start", 0) : attributes.get("end")]),
    "Size": lambda attributes, x: np.array(array(x).size, np.int64),
    "Cast": lambda attributes, x: array(x).astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])),
    "CastLike": lambda attributes, x, like: array(x).astype(array(like).dtype),
    "ConstantOfShape": lambda attributes, shape: np.full(
        tuple(integers(shape)), onnx.numpy_helper.to_array(attributes["value"]).item() if "value" in attributes else 0,
        onnx.numpy_helper.to_array(attributes["value"]).dtype if "value" in attributes else np.float32),
    "Range": lambda attributes, a, b, step: np.arange(array(a), array(b), array(step), dtype=array(a).dtype),
    "Not": lambda attributes, x: ~array(x),
    "And": lambda attributes, a, b: array(a) & array(b),
    "Or": lambda attributes, a, b: array(a) | array(b),
    "Mod": lambda attributes, a, b: array(a) % array(b),
}  # fmt: skip


def constant(attributes):
    for key in ("value_float", "value_floats"):
        if key in attributes:
            return np.asarray(attributes[key], np.float32)
    for key in ("value_int", "value_ints"):
        if key in attributes:
            return np.asarray(attributes[key], np.int64)
    return onnx.numpy_helper.to_array(attributes["value"])


# Operators that have no adapter, with the reason

NOT_OURS = {
    "types that NumPy lacks, quantised or packed numbers": """
        BitCast Cast CastLike ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv
        QLinearMatMul QuantizeLinear
    """,
    "integers, booleans and bits": """
        And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor IsInf IsNaN Mod NonZero Not OneHot Or
        Sign TopK Unique Xor
    """,
    "text, sequences, optional values and control flow": """
        If ImageDecoder LabelEncoder Loop OptionalGetElement OptionalHasElement RegexFullMatch Scan SequenceInsert
        SequenceMap SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer
    """,
    "moves no numbers that tinydiff would compute": "Constant ConstantOfShape EyeLike Identity Range Shape Size",
    "random numbers of another generator": """
        Bernoulli Dropout RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    """,
    "recurrent networks and other forms of attention": """
        CausalConvWithState FlexAttention GRU LSTM LinearAttention RNN RotaryEmbedding TensorScatter
    """,
    "signal processing": "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT",
    "optimisers as operators": "Adagrad Adam Momentum",
    "tables, trees and boxes": "ArrayFeatureExtractor Binarizer NonMaxSuppression RoiAlign TreeEnsemble",
    "operations that tinydiff does not have": """
        Acos Acosh AffineGrid Asin Asinh Atan Atanh Ceil CenterCropPad Col2Im Compress CumProd
        CumSum DeformConv Det Floor GridSample Hardmax LRN LpNormalization LpPool MaxUnpool
        MeanVarianceNormalization RMSNormalization ReduceProd ReverseSequence Round Scatter ScatterElements
        ScatterND Shrink SwiGLU Tile Trilu
    """,
}
TYPES = "types that NumPy lacks, quantised or packed numbers"
REASON = {name: reason for reason, names in NOT_OURS.items() for name in names.split()}


def evaluate(model, inputs):
    """The model's outputs, node by node. NotApplicable if there is a node that tinydiff does not stand for."""
    if any(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
        raise NotApplicable("operators from outside ONNX's main set")
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    values = {"": None} | {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in values]
    values |= dict(zip(names, inputs, strict=False))
    for value in values.values():
        if isinstance(value, list | tuple) or (value is not None and array(value).dtype.kind not in "fiub"):
            raise NotApplicable(TYPES)
    computing = [node.op_type for node in model.graph.node if node.op_type not in PLUMBING]
    missing = [name for name in computing if name not in ADAPTERS]
    if missing or not computing:
        name = (missing or [model.graph.node[0].op_type])[0]
        raise NotApplicable(REASON.get(name, f"{name}: not known to this list"))
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes |= {"__op__": node.op_type, "__opset__": opset, "__outputs__": len(node.output)}
        attributes["__alone__"] = len(model.graph.node) == 1
        if any(isinstance(a, onnx.GraphProto) for a in attributes.values()):
            raise NotApplicable("text, sequences, optional values and control flow")
        arguments = [values[name] for name in node.input]
        while arguments and arguments[-1] is None:
            arguments.pop()
        results = (ADAPTERS.get(node.op_type) or PLUMBING[node.op_type])(attributes, *arguments)
        results = results if isinstance(results, tuple) else (results,)
        values |= dict(zip(node.output, results, strict=True))
    return [values[o.name] for o in model.graph.output]


def node_cases():
    """(name, model, inputs, outputs, rtol, atol) of ONNX's node suite, which the package generates."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        for inputs, outputs in case.data_sets:
            yield case.name, case.model, inputs, outputs, case.rtol, case.atol


def stored_cases(kind):
    """The same of the suites that the package stores as files."""
    from onnx.backend.test.loader import load_model_tests

    def read(path):
        return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))

    for case in load_model_tests(kind=kind):
        folder = Path(case.model_dir)
        model = onnx.load(folder / "model.onnx")
        for data in sorted(folder.glob("test_data_set_*")):
            inputs, outputs = (
                [read(data / f"{what}_{i}.pb") for i in range(len(list(data.glob(f"{what}_*.pb"))))]
                for what in ("input", "output")
            )
            yield case.name, model, inputs, outputs, case.rtol, case.atol


@pytest.fixture(scope="module")
def outcome():
    """What became of every case: {suite: {name: None, or the reason why it does not apply, or the failure}}."""
    results = {}
    for suite, cases in (
        ("node", node_cases()),
        ("pytorch-converted", stored_cases("pytorch-converted")),
        ("pytorch-operator", stored_cases("pytorch-operator")),
    ):
        results[suite] = {}
        for name, model, inputs, outputs, rtol, atol in cases:
            with np.errstate(all="ignore"):
                results[suite][name] = judge(model, inputs, outputs, rtol, atol)
    return results


def judge(model, inputs, outputs, rtol, atol):
    try:
        if any(isinstance(a, np.ndarray) and a.dtype.kind not in "fiub" for a in (*inputs, *outputs)):
            raise NotApplicable(TYPES)
        got = evaluate(model, inputs)
        for ours, theirs in zip(got, outputs, strict=True):
            assert isinstance(ours, Tensor | np.ndarray)
            assert array(ours).dtype == theirs.dtype, f"{array(ours).dtype} instead of {theirs.dtype}"
            assert array(ours).shape == theirs.shape, f"{array(ours).shape} instead of {theirs.shape}"
            if theirs.dtype == np.float16:
                rtol = max(rtol, 4 * float(np.finfo(np.float16).eps))
            np.testing.assert_allclose(array(ours), theirs, rtol=rtol, atol=atol)
    except NotApplicable as reason:
        return str(reason)
    except Exception as failure:
        return failure
    return None


SUITES = {"node": 800, "pytorch-converted": 60, "pytorch-operator": 30}  # at least so many must run


@pytest.mark.parametrize("suite", SUITES)
def test_every_case_that_applies_agrees(outcome, suite):
    failures = {name: result for name, result in outcome[suite].items() if isinstance(result, Exception)}
    assert not failures, "\n".join(f"{name}: {type(e).__name__}: {e}" for name, e in failures.items())


def test_count(outcome, capsys):
    lines = []
    for suite in SUITES:
        ran = [name for name, result in outcome[suite].items() if result is None]
        assert len(ran) >= SUITES[suite]
        lines.append(f"ONNX {suite}: {len(ran)} of {len(outcome[suite])} cases run through tinydiff.ops")
        for reason, count in collections.Counter(
            r for r in outcome[suite].values() if isinstance(r, str)
        ).most_common():
            lines.append(f"    {count:5d}  {reason}")
    with capsys.disabled():
        print("", *lines, sep="\n")
