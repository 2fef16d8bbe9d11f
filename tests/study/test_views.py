"""The page, the pictures of graph and memory: what is in them, without a browser."""

import base64
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinydiff as td
from tinydiff.errors import InputError
from tinydiff.study.layout import boxes, folded, groups_of
from tinydiff.study.page import page
from tinydiff.study.table import backward_table

pytest.importorskip("igraph", reason="needs igraph, the extra `study`")


@pytest.fixture(scope="module")
def traced():
    unet = td.UNet(8, 1, channels=4, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,), groups=2)
    with td.trace(values=200) as trace:
        td.ops.mse_loss(unet(np.zeros((1, 8, 8, 1), np.float32), 3), np.ones((1, 8, 8, 1), np.float32)).backward()
    return trace, unet


def contents(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_the_page_holds_the_numbers(traced):
    trace, unet = traced
    data = contents(page(trace))
    node = next(n for n in data["nodes"] if n["module"] == "conv_out")
    array = data["arrays"][node["LX"][node["names"].index("b")]]
    values = np.frombuffer(base64.b64decode(array["values"]), "<" + array["type"])
    np.testing.assert_array_equal(values, unet.conv_out.bias.grad)
    assert node["formulas"][1][:2] == ["Pᵀ L_Y", "(36, 1) = (36, 64) (64, 1)"]
    assert node["formulas"][1][4] == ["P = patches(X)"]
    gradients = sum(len([L for L in op.L_Xs if L is not None]) for op in trace.operations)
    assert sum(step["kind"] == "gradient" for step in data["steps"]) <= gradients
    assert len(data["steps"]) == len(trace.steps) and data["steps"][0]["kind"] == "forward"
    backward = sum(step["kind"] != "forward" for step in data["steps"])
    assert f"{len(trace.operations)} steps forward and {backward} backward: " in str(trace)
    assert [s["live"] for s in data["steps"] if s["kind"] == "sum"] == [e.live for e in trace.events if e.kind == "sum"]
    assert "too large to keep whole" in " ".join(data["notes"]) and any(a["index"] for a in data["arrays"])


def test_the_page_counts_steps_as_the_table_does(traced):
    trace, _ = traced
    data = contents(page(trace))
    head, *lines = backward_table(trace, 300).splitlines()
    rows = [m.groups() for line in lines if (m := re.match(r" *(\d+)(?:-(\d+))?  (.+?)  ", line))]
    names = [name for first, last, name in rows for _ in range(int(first), int(last or first) + 1)]
    steps = [step for step in data["steps"] if step["kind"] != "forward"]
    assert [s["k"] for s in steps] == list(range(1, len(steps) + 1)) and data["counts"] == [
        len(trace.operations),
        len(steps),
    ]
    assert f" {len(steps)} backward: " in head
    for name, step in zip(names, steps, strict=True):
        assert (
            name.startswith("sum for")
            if step["kind"] == "sum"
            else name == f"{data['nodes'][step['node']]['name']} #{step['node']}"
        )


def test_the_page_loads_nothing_and_escapes_everything(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>&\u2028"
    scope = {"td": td, "np": np}
    exec(
        compile(f"def f(**_):\n    x = td.Tensor(np.ones(2), requires_grad=True)  # {hostile[:-1]}\n"
                "    return td.ops.exp(x).sum()", hostile, "exec"), scope,
    )  # fmt: skip
    with td.trace() as trace:
        scope["f"]().backward()
    trace.note(hostile)
    trace.leaves[0].name = hostile
    trace.html(tmp_path / "page.html", title=hostile)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in text and text.count("</script>") == 2
    data = contents(text)
    assert data["title"] == hostile and data["leaves"][0]["name"] == hostile and hostile in data["notes"]
    urls = set(re.findall(r"https?://[^\"'\s]+", text))
    assert urls == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=", text)
    assert "default-src 'none'" in text


def test_the_example_of_readme_runs_as_it_is_pasted(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## See a backward pass") : readme.index("## Is my gradient right?")]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(code, "pasted", "exec"), scope)
    trace = scope["trace"]
    assert len(contents((tmp_path / "unet.html").read_text(encoding="utf-8"))["nodes"]) == len(trace.operations)
    norms = [L.norm for op in trace.operations for L in op.L_Ys]
    assert min(norms) > 1e-3 and "Conv2d" in capsys.readouterr().out


def test_modules_fold_to_boxes(traced):
    trace, _ = traced
    groups = groups_of(trace.operations)
    paths = [g.path for g in groups]
    assert "up_blocks.0" in paths and "mid_block.attentions.0" in paths
    for outer in groups:
        inside = trace.operations[outer.first : outer.last + 1]
        assert len(inside) > 1 and all(op.place.module.startswith(outer.path) for op in inside)
    shallow = folded(groups, 1)
    assert all(not (a is not b and a.first <= b.first and b.last <= a.last) for a in shallow for b in shallow)
    found, arrows = boxes(trace.operations, most=30)
    assert len(found) <= 30 and sum(len(b.members) for b in found if b.members) > 40
    whole, all_arrows = boxes(trace.operations)
    for some, lines in ((found, arrows), (whole, all_arrows)):
        assert all(some[a].layer < some[b].layer for a, b in lines)  # arrows point down
        assert len({(b.x, b.layer) for b in some}) == len(some)


def test_pictures_of_the_graph(traced, tmp_path):
    trace, _ = traced
    trace.graph(tmp_path / "g.svg")
    root = ET.fromstring((tmp_path / "g.svg").read_text(encoding="utf-8"))
    texts = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"mid_block.attentions.0"} <= texts and any(t.startswith("MseLoss #") for t in texts)
    drawn = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("rx")]
    corners = [tuple(float(e.get(name)) for name in ("x", "y", "width", "height")) for e in drawn]
    assert len(corners) > 20 and all(x >= 0 and x + w <= float(root.get("width")) for x, _, w, _ in corners)
    for i, (x, y, w, h) in enumerate(corners):
        assert all(x + w <= a or a + w <= x or y + h <= b or b + h <= y for a, b, _, _ in corners[:i])  # none overlap
    trace.graph(tmp_path / "g.png")
    image = np.asarray(Image.open(tmp_path / "g.png"))
    assert image.shape[0] > 1000 and (image != 255).any()
    with pytest.raises(InputError, match=r"an \.svg or a \.png, not \.pdf"):
        trace.graph(tmp_path / "g.pdf")


def test_the_picture_of_memory(traced, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, the extra `plot`")
    trace, _ = traced
    trace.memory(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").size == (900, 450)
    with pytest.raises(InputError, match=r"must end in \.png"):
        trace.memory(tmp_path / "m.svg")


def test_without_the_layout_library_one_sentence_says_what_to_install(traced, tmp_path, monkeypatch):
    trace, _ = traced
    monkeypatch.setitem(__import__("sys").modules, "igraph", None)
    with pytest.raises(InputError, match=r"drawing a graph needs igraph: pip install 'tinydiff\[study\]'"):
        trace.html(tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()
    assert "needs igraph" in trace._repr_html_() and "<pre>" in trace._repr_html_()


def test_a_notebook_shows_the_page(traced):
    trace, _ = traced
    shown = trace._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and "<script" not in shown


def test_an_empty_trace_has_views(tmp_path):
    with td.trace() as trace:
        pass
    trace.html(tmp_path / "p.html")
    trace.graph(tmp_path / "g.svg")
    assert "0 operations" in str(trace) and "all" in str(trace.cost()) and Path(tmp_path / "g.svg").stat().st_size > 100


def test_of_a_trace_that_is_too_large_a_page_shows_the_end_and_says_so(traced, monkeypatch):
    from tinydiff.study import page as pages
    from tinydiff.study import tracing

    trace, _ = traced
    whole = contents(page(trace))
    monkeypatch.setattr(pages, "MOST", 20)
    part = contents(page(trace))
    assert len(part["nodes"]) == 20 and part["first"] == len(trace.operations) - 20
    assert part["nodes"][-1]["name"] == "MseLoss" and "only the last 20 of" in part["notes"][-1]
    assert part["steps"][-1].get("node", part["steps"][-1].get("where")) in (0, "n0") and len(part["steps"]) < len(
        whole["steps"]
    )
    monkeypatch.setattr(tracing, "_SHOWN", 1000)
    assert "html(path) writes it to a file" in trace._repr_html_()


def test_graphs_whose_arrows_are_long_are_placed_quickly():
    x = td.Tensor(np.ones(2), requires_grad=True)
    with td.no_grad(), td.trace() as trace:
        y = x
        for _ in range(250):
            y = y + x
    found, arrows = boxes(trace.operations)
    assert len(found) == 251 and all(found[a].layer < found[b].layer for a, b in arrows)
