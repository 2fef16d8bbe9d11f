"""The picture of a page in README shows what the page says today."""

import pytest
from PIL import Image

from tests.study.picture import KEY, PICTURE, fingerprint, traced

pytest.importorskip("igraph", reason="needs igraph, the extra `study`")


def test_the_picture_is_current():
    with Image.open(PICTURE) as image:
        assert min(image.size) > 800
        assert image.info.get(KEY) == fingerprint(traced()), "python -m tests.study.picture takes it anew"
