"""The page that explains gradient checking runs, and with it every claim that it makes."""

import runpy
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "examples" / "how_gradient_checking_works.py"


def test_every_claim_of_the_page_holds(capsys):
    runpy.run_path(str(PAGE), run_name="__main__")
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line[:2] in [f"{n}." for n in range(1, 10)]] == [
        "1. What is compared",
        "2. Which step",
        "3. Why not y.sum()",
        "4. Why not a few elements",
        "5. Is it the differences that are wrong?",
        "6. Kinks",
        "7. Right formulas that are wrong all the same",
        "8. What every check begins with",
        "9. Without float64: the adjoint test",
    ]
    for probe in ("strides", "layouts", "needs", "dropped", "shared", "reuse", "sizes", "purity", "repeat", "slopes"):
        assert any(line.split()[:1] == [probe] for line in said.splitlines()), probe
