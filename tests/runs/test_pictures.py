"""Bytes and floats, grids, PNG and GIF files read back by Pillow, the loss curve, and every refusal."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tinydiff.data import pixels
from tinydiff.errors import InputError, RunFailed
from tinydiff.runs import pictures

BYTES = np.arange(256, dtype=np.uint8)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def gif_frames(path, mode):
    """Every frame as pixels, with its duration in ms, as Pillow decodes them."""
    with Image.open(path) as file:
        out = []
        for i in range(file.n_frames):
            file.seek(i)
            out.append((np.asarray(file.convert(mode)), file.info["duration"]))
        return out


# Bytes and floats


def test_to_float_is_correctly_rounded():
    expected = (np.arange(256, dtype=np.float64) / 127.5 - 1).astype(np.float32)
    out = pixels.to_float(BYTES)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, expected)
    assert out[0] == -1 and out[255] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_survive_the_round_trip(dtype):
    np.testing.assert_array_equal(pixels.to_bytes(pixels.to_float(BYTES).astype(dtype)), BYTES)


def test_to_bytes_rounds_and_clips():
    x = np.array(
        [-np.inf, -7, -1, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1 - 0.51 / 127.5, 1 - 0.49 / 127.5, 1.5, np.inf]
    )
    np.testing.assert_array_equal(pixels.to_bytes(x), [0, 0, 0, 0, 1, 254, 255, 255, 255])


def test_conversions_refuse_the_wrong_dtype_and_nan():
    with pytest.raises(TypeError, match="uint8, not int64"):
        pixels.to_float(np.arange(3))
    with pytest.raises(TypeError, match="floating-point images, not uint8"):
        pixels.to_bytes(BYTES)
    with pytest.raises(RunFailed, match="NaN in 2 of 3 values"):
        pixels.to_bytes(np.array([np.nan, 0, np.nan]))


# Channels and sizes


def test_colour_to_grey_is_pillows_and_back_repeats():
    x = noise(3, 9, 5, 3)
    grey = pixels.convert_channels(x, 1)
    assert grey.shape == (3, 9, 5, 1) and grey.dtype == np.uint8
    for a, b in zip(x, grey, strict=True):
        np.testing.assert_array_equal(b[..., 0], np.asarray(Image.fromarray(a).convert("L")))
    colour = pixels.convert_channels(grey, 3)
    np.testing.assert_array_equal(colour, np.concatenate([grey] * 3, -1))
    np.testing.assert_array_equal(pixels.convert_channels(colour, 1), grey)
    assert pixels.convert_channels(x, 3) is x


@pytest.mark.parametrize(("have", "want"), [(2, 1), (4, 3), (1, 4), (3, 2)])
def test_other_channel_changes_are_refused(have, want):
    with pytest.raises(InputError, match=f"{have} channels cannot be made into {want}"):
        pixels.convert_channels(noise(1, 4, 4, have), want)


def test_resize_crops_the_middle_square():
    x = noise(2, 6, 12, 4)
    np.testing.assert_array_equal(pixels.resize(x, 6), x[:, :, 3:9])
    np.testing.assert_array_equal(pixels.resize(x.transpose(0, 2, 1, 3), 6), x.transpose(0, 2, 1, 3)[:, 3:9])
    square = noise(2, 8, 8, 1)
    assert pixels.resize(square, 8) is square


def test_resize_averages_down_and_keeps_constants():
    checks = np.zeros((1, 64, 64, 2), np.uint8)
    checks[:, ::2, 1::2] = checks[:, 1::2, ::2] = 200
    small = pixels.resize(checks, 8)
    assert small.shape == (1, 8, 8, 2)
    assert abs(small.astype(int) - 100).max() <= 2  # antialiased: without that, 0 or 200
    assert (pixels.resize(np.full((1, 5, 7, 3), 77, np.uint8), 32) == 77).all()


# Grids


@pytest.mark.parametrize(
    ("n", "columns", "rows_and_columns"),
    [(1, None, (1, 1)), (5, None, (2, 3)), (9, None, (3, 3)), (7, 4, (2, 4)), (3, 8, (1, 3)), (4, 1, (4, 1))],
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grid_places_every_image(n, columns, rows_and_columns, channels):
    x = noise(n, 4, 6, channels)
    rows, cols = rows_and_columns
    sheet = pictures.grid(x, columns=columns, padding=1)
    assert sheet.shape == (rows * 5 + 1, cols * 7 + 1, channels) and sheet.dtype == np.uint8
    rest = np.ones(sheet.shape[:2], bool)
    for i in range(n):
        place = np.s_[1 + i // cols * 5 : 5 + i // cols * 5, 1 + i % cols * 7 : 7 + i % cols * 7]
        np.testing.assert_array_equal(sheet[place], x[i])
        rest[place] = False
    assert (sheet[rest] == 255).all()


def test_grid_scales_by_nearest():
    x = noise(2, 3, 3, 3)
    sheet = pictures.grid(x, padding=0, scale=4)
    np.testing.assert_array_equal(sheet, np.kron(np.concatenate(list(x), 1), np.ones((4, 4, 1), np.uint8)))


@pytest.mark.parametrize(
    "x", [noise(4, 4, 3), noise(1, 4, 4, 5), noise(0, 4, 4, 1), np.zeros((1, 4, 4, 1), np.float32)]
)
def test_grid_refuses_what_is_not_images(x):
    with pytest.raises(ValueError, match="grid takes uint8 images"):
        pictures.grid(x)


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"padding": -1}, {"scale": 0}])
def test_grid_refuses_wrong_layouts(wrong):
    with pytest.raises(ValueError, match="columns and scale from 1"):
        pictures.grid(noise(1, 4, 4, 1), **wrong)


# PNG


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_png_reads_back_exactly(tmp_path, channels, mode):
    x = noise(7, 5, channels)
    pictures.save_png(tmp_path / "x.png", x)
    with Image.open(tmp_path / "x.png") as file:
        assert (file.format, file.mode, file.size) == ("PNG", mode, (5, 7))
        np.testing.assert_array_equal(np.atleast_3d(np.asarray(file)), x)


def test_png_of_several_images_is_their_grid(tmp_path):
    x = noise(6, 4, 4, 3)
    pictures.save_png(str(tmp_path / "x.PNG"), x)
    with Image.open(tmp_path / "x.PNG") as file:
        np.testing.assert_array_equal(np.asarray(file), pictures.grid(x))
    assert os.listdir(tmp_path) == ["x.PNG"]


def test_png_refuses_wrong_names_and_arrays(tmp_path):
    with pytest.raises(InputError, match=r"x\.jpg .*must end in \.png"):
        pictures.save_png(tmp_path / "x.jpg", noise(4, 4, 3))
    with pytest.raises(ValueError, match=r"a picture is uint8 .* not float32 \(4, 4, 3\)"):
        pictures.save_png(tmp_path / "x.png", np.zeros((4, 4, 3), np.float32))
    assert os.listdir(tmp_path) == []


def test_unwritable_places_are_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path, reason in [
        (tmp_path / "none" / "x.png", "No such file or directory"),
        (tmp_path / "file" / "x.png", "Not a directory"),
        (tmp_path / "folder.png", "Is a directory"),
    ]:
        with pytest.raises(InputError) as caught:
            pictures.save_png(path, noise(4, 4, 1))
        assert str(caught.value) == f"{path} cannot be written: {reason}"
        with pytest.raises(InputError) as known_before:
            pictures.check_place(path, ".png")
        assert str(known_before.value) == str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_a_good_place_stays_as_it_was(tmp_path):
    path = tmp_path / "x.gif"
    pictures.check_place(path, ".gif")
    assert os.listdir(tmp_path) == []
    path.write_bytes(b"before")
    pictures.check_place(str(path), ".gif")
    assert os.listdir(tmp_path) == ["x.gif"] and path.read_bytes() == b"before"
    with pytest.raises(InputError, match=r"x\.gif .*must end in \.png"):
        pictures.check_place(path, ".png")


def test_a_full_disk_fails_the_run_and_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    pictures.save_png(path, noise(4, 4, 1))
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"the disk is full: .*x\.png could not be written"):
        pictures.save_png(path, noise(4, 4, 1, seed=1))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.png"]


def test_an_interrupted_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    pictures.save_png(path, noise(4, 4, 1))
    before = path.read_bytes()

    def interrupted(*_):
        assert path.read_bytes() == before  # until the very last call
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pictures.save_png(path, noise(4, 4, 1, seed=1))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.png"]


# GIF


def test_grey_gif_is_exact_and_holds_its_last_frame(tmp_path):
    x = noise(4, 20, 30, 1)
    x[0, :, :, 0].flat[:256] = BYTES  # every grey there is
    x[3, 5:, :] = x[2, 5:, :]  # and frames that differ in part, which GIF stores as patches
    pictures.save_gif(tmp_path / "x.gif", list(x), duration=50, hold=1500)
    frames = gif_frames(tmp_path / "x.gif", "L")
    assert [duration for _, duration in frames] == [50, 50, 50, 1500]
    for frame, image in zip(frames, x, strict=True):
        np.testing.assert_array_equal(frame[0], image[..., 0])
    with Image.open(tmp_path / "x.gif") as file:
        assert file.info["loop"] == 0


def test_colour_gif_keeps_few_colours_and_comes_near_for_many(tmp_path):
    few = np.zeros((3, 16, 16, 3), np.uint8)
    few[0, :, :, 0], few[1, 4:9, :, 1], few[2, :, 3:7, 2] = 255, 200, 99
    pictures.save_gif(tmp_path / "few.gif", few)
    for (frame, _), image in zip(gif_frames(tmp_path / "few.gif", "RGB"), few, strict=True):
        np.testing.assert_array_equal(frame, image)
    ramp = np.stack(np.broadcast_arrays(np.arange(64)[:, None] * 4, np.arange(64) * 4, 128), -1).astype(np.uint8)
    pictures.save_gif(tmp_path / "ramp.gif", [ramp, ramp[::-1]])
    for (frame, _), image in zip(gif_frames(tmp_path / "ramp.gif", "RGB"), (ramp, ramp[::-1]), strict=True):
        assert np.abs(frame.astype(int) - image).mean() < 8


def test_gif_puts_what_is_transparent_on_white(tmp_path):
    grey = np.zeros((2, 8, 8, 2), np.uint8)
    grey[:, :, 4:, 1] = 255
    grey[1, 0, 7, 0] = 100
    pictures.save_gif(tmp_path / "x.gif", grey)
    frames = gif_frames(tmp_path / "x.gif", "L")
    assert (frames[0][0][:, :4] == 255).all() and (frames[0][0][:, 4:] == 0).all() and frames[1][0][0, 7] == 100
    colour = np.zeros((1, 8, 8, 4), np.uint8)
    colour[..., 0], colour[:, :4, :, 3] = 255, 255
    pictures.save_gif(tmp_path / "y.gif", colour)
    frame = gif_frames(tmp_path / "y.gif", "RGB")[0][0]
    assert (frame[:4] == (255, 0, 0)).all() and (frame[4:] == 255).all()


def test_gif_refuses_wrong_frames_names_and_places(tmp_path):
    with pytest.raises(ValueError, match=r"one or more frames of one shape .* not none"):
        pictures.save_gif(tmp_path / "x.gif", [])
    with pytest.raises(ValueError, match=r"not \[\(4, 4, 1\), \(5, 4, 1\)\]"):
        pictures.save_gif(tmp_path / "x.gif", [noise(5, 4, 1), noise(4, 4, 1)])
    with pytest.raises(InputError, match=r"must end in \.gif"):
        pictures.save_gif(tmp_path / "x.png", [noise(4, 4, 1)])
    with pytest.raises(InputError, match="cannot be written"):
        pictures.save_gif(tmp_path / "none" / "x.gif", [noise(4, 4, 1)])


# The loss curve


def write_log(path, losses, tail=""):
    rows = [f"{i},{loss},0.5,0.001,99" for i, loss in enumerate(losses, 1)]
    path.write_text("step,loss,grad norm,lr,images/s\n" + "\n".join(rows) + "\n" + tail)


def test_plot_loss_draws_without_pyplot(tmp_path):
    pytest.importorskip("matplotlib")
    write_log(tmp_path / "log.csv", [1 / (1 + i / 50) for i in range(500)], tail="501,0.0")
    code = (
        "import sys; from tinydiff.runs.pictures import plot_loss\n"
        f"assert plot_loss({str(tmp_path / 'log.csv')!r}, {str(tmp_path / 'loss.png')!r}) is True\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with Image.open(tmp_path / "loss.png") as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)
    assert pixels.shape == (450, 800, 3)
    blue = pixels[..., 2] - pixels[..., 0] > 80
    assert blue[:150, :200].any() and blue[250:, 500:].any() and not blue[250:, :200].any()  # a curve that falls


def test_losses_are_read_without_broken_rows(tmp_path):
    write_log(tmp_path / "log.csv", [0.5, "nan", 0.25, "inf", "oops", 0.125], tail="7,0.0")
    steps, losses = pictures._read_losses(tmp_path / "log.csv")
    np.testing.assert_array_equal(steps, [1, 3, 6])
    np.testing.assert_array_equal(losses, [0.5, 0.25, 0.125])


def test_the_loss_on_held_out_images_is_a_second_curve(tmp_path):
    colours = []
    for held in ("", "0.3"):
        rows = [f"{i},{1 / i},0.5,0.001,99,{held * (i % 2)}" for i in range(1, 9)]
        (tmp_path / "log.csv").write_text("step,loss,grad_norm,lr,images_per_second,holdout_loss\n" + "\n".join(rows))
        pictures.plot_loss(tmp_path / "log.csv", tmp_path / "loss.png")
        with Image.open(tmp_path / "loss.png") as file:
            colours.append((np.asarray(file.convert("RGB")) == (255, 127, 14)).all(-1).sum())  # orange
    assert colours[0] == 0 and colours[1] > 100


@pytest.mark.parametrize("losses", [[0.5], [0.0, 1.0], [1.0, -2.0, 3.0]])
def test_plot_loss_takes_short_logs_and_losses_without_logarithm(tmp_path, losses):
    pytest.importorskip("matplotlib")
    write_log(tmp_path / "log.csv", losses)
    assert pictures.plot_loss(tmp_path / "log.csv", tmp_path / "loss.png") is True
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_plot_loss_without_matplotlib_says_what_to_install(tmp_path, monkeypatch, capsys):
    write_log(tmp_path / "log.csv", [1.0, 0.5])
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert pictures.plot_loss(tmp_path / "log.csv", tmp_path / "loss.png") is False
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "tinydiff[plot]" in lines[0]
    assert not (tmp_path / "loss.png").exists()


def test_plot_loss_refuses_logs_without_losses(tmp_path):
    path = tmp_path / "log.csv"
    with pytest.raises(InputError, match=r"log\.csv cannot be read: No such file"):
        pictures.plot_loss(path, tmp_path / "loss.png")
    for content in (b"", b"step,loss\n", b"a,b\n1,2\n", b"step,loss\n1,nan\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"log\.csv holds no rows"):
            pictures.plot_loss(path, tmp_path / "loss.png")
    path.write_bytes(b"step,loss\n\xff\xfe,1\n")
    with pytest.raises(InputError, match=r"log\.csv cannot be read"):
        pictures.plot_loss(path, tmp_path / "loss.png")


def test_importing_loads_neither_pillow_nor_matplotlib():
    code = "import sys, tinydiff.data; assert not {'PIL', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
