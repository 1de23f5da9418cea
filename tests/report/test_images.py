import io

import numpy as np
import pytest
from PIL import Image

from advjax.data import to_float
from advjax.report.images import (
    amplification,
    amplified,
    image_size,
    load_image,
    png_bytes,
    save_png,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 7, 3)])
def test_a_saved_image_is_read_back_to_the_bit(tmp_path, shape):
    x = np.asarray(to_float(RNG.integers(0, 256, shape, dtype=np.uint8)))
    save_png(tmp_path / "a.png", x)
    assert np.array_equal(load_image(tmp_path / "a.png", shape), x)
    assert image_size(tmp_path / "a.png") == (5, 7)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_any_picture_becomes_the_models_shape(tmp_path):
    colour = Image.fromarray(np.full((20, 30, 3), (200, 100, 50), np.uint8))
    for name, picture in {
        "rgb.jpg": colour,
        "rgba.png": colour.convert("RGBA"),
        "palette.png": colour.convert("P"),
        "grey.png": colour.convert("L"),
        "bits.png": colour.convert("1"),
        "deep.png": Image.fromarray(np.full((20, 30), 30000, np.uint16)),
    }.items():
        picture.save(tmp_path / name)
        for shape in ((8, 8, 1), (20, 30, 3), (48, 20, 3)):
            x = load_image(tmp_path / name, shape)
            assert x.shape == shape and x.dtype == np.float32 and 0 <= x.min() <= x.max() <= 1
    rgb = load_image(tmp_path / "rgba.png", (20, 30, 3))
    np.testing.assert_allclose(rgb[0, 0] * 255, [200, 100, 50], atol=1e-3)
    assert abs(load_image(tmp_path / "deep.png", (20, 30, 1)).mean() - 30000 / 65535) < 1 / 255


def test_a_turned_photograph_is_shown_upright(tmp_path):
    picture = Image.fromarray(np.zeros((10, 20), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (20, 10)


@pytest.mark.parametrize("content", [b"", b"GIF89", png_bytes(np.zeros((9, 9)))[:40]])
def test_an_unreadable_picture_is_named_in_one_line(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match="bad.png is no readable image") as error:
        load_image(tmp_path / "bad.png", (4, 4, 1))
    assert "\n" not in str(error.value)


def test_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image"):
        load_image(tmp_path / "none.png", (4, 4, 1))
    with pytest.raises(ValueError, match="no readable image"):
        load_image(tmp_path, (4, 4, 1))
    with pytest.raises(ValueError, match=r"shape: given \(4, 4, 2\)"):
        load_image(tmp_path / "none.png", (4, 4, 2))
    with pytest.raises(ValueError, match=r"image: given shape \(4, 4, 2\)"):
        png_bytes(np.zeros((4, 4, 2)))
    with pytest.raises(ValueError, match="not finite"):
        png_bytes(np.full((4, 4), np.nan))


def test_a_perturbation_is_amplified_around_grey_or_black():
    x = np.full((1, 1, 3), 0.5, np.float32)
    x_adv = x + np.float32([-0.004, 0, 0.002])
    np.testing.assert_allclose(amplified(x, x_adv)[0, 0], [0.3, 0.5, 0.6], atol=1e-5)
    np.testing.assert_allclose(amplified(x, x_adv, absolute=True)[0, 0], [0.2, 0, 0.1], atol=1e-5)
    np.testing.assert_allclose(amplified(x, x_adv, 1000)[0, 0], [0, 0.5, 1])
    with pytest.raises(ValueError, match="given shapes"):
        amplified(x, x_adv[:, :, :1])


@pytest.mark.parametrize(
    ("change", "factor"), [(0, 50), (0.01, 50), (0.03, 10), (0.1, 5), (0.3, 1), (1, 0.5)]
)
def test_the_amplification_is_round_and_cuts_nothing_off(change, factor):
    x = np.zeros((2, 2))
    assert amplification(x, x + change) == factor
    shown = amplified(x, x + change, None)
    assert shown.max() <= 1 and np.isclose(shown.max(), 0.5 + change * factor)


def test_a_png_holds_256_levels():
    with Image.open(io.BytesIO(png_bytes(np.float32([[0, 0.499, 1.2, -1]])))) as picture:
        assert np.asarray(picture).tolist() == [[0, 127, 255, 0]]
