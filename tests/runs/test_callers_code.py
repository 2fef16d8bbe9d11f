"""What a caller has put into a run may raise anything: the error reaches the caller, the steps done are saved, and the run goes on
bit for bit."""

import dataclasses

import pytest

import tinydiff as td
from tests.runs.test_trainer import assert_same_run, no_pictures, tiny_trainer  # noqa: F401
from tinydiff.errors import InputError
from tinydiff.runs import checkpoint
from tinydiff.runs.trainer import Trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_finish", lambda self: None)
        tiny_trainer(out, steps=5).run()
    return out


class Bomb:
    """Raises an error at the nth call, if it is told one."""

    def __init__(self, error, n):
        self.error, self.left = error, n

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            raise self.error


def in_data(trainer, bomb):
    real = trainer.data.batch
    trainer.data.batch = lambda *args: (bomb(), real(*args))[1]


def in_network(trainer, bomb):
    real = trainer.unet.forward
    trainer.unet.forward = lambda *args: (bomb(), real(*args))[1]


def in_loss(trainer, bomb):
    real = trainer.diffusion.loss
    object.__setattr__(trainer.diffusion, "loss", lambda *args: (real(*args), bomb())[0])


def in_hook(trainer, bomb):
    trainer.unet.conv_in.register_full_backward_hook(lambda *args: bomb())


def after_step(trainer, bomb):
    real = trainer.train_step
    trainer.train_step = lambda step: (real(step), bomb())[0]


def in_save(trainer, bomb):
    real = trainer.save
    trainer.save = lambda: (real(), bomb())[0]


@pytest.mark.parametrize(
    ("place", "n", "saved", "error"),
    [
        (in_data, 3, 2, KeyboardInterrupt()),
        (in_data, 3, 2, OSError(2, "no such file", "x.png")),
        (in_network, 3, 2, StopIteration()),
        (in_loss, 3, 2, GeneratorExit()),
        (in_hook, 3, 2, SystemExit(0)),
        (after_step, 3, 3, InputError("x")),
        (after_step, 4, 4, MemoryError()),
        (in_save, 2, 3, OSError(28, "full")),
    ],
)
def test_an_error_reaches_the_caller_and_costs_no_step(whole, tmp_path, place, n, saved, error):
    trainer = tiny_trainer(tmp_path / "run", steps=4, save_every=3)
    place(trainer, Bomb(error, n))
    with pytest.raises(type(error)) as caught:
        trainer.run()
    assert caught.value is error and checkpoint.read_step(tmp_path / "run") == saved
    trainer.config = dataclasses.replace(trainer.config, steps=5)
    trainer.run(resume=True)  # the same object goes on, as another would
    assert_same_run(whole, tmp_path / "run")


def test_in_a_preview_or_while_weights_change(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path / "run", None, steps=4, preview_every=3)
    in_network(trainer, Bomb(SystemExit(3), 5))  # the second step of sampling; weights are averages meanwhile
    with pytest.raises(SystemExit):
        trainer.run()
    assert checkpoint.read_step(tmp_path / "run") == 3
    tiny_trainer(tmp_path / "run", None, steps=4).run(resume=True)
    tiny_trainer(tmp_path / "whole", None, steps=4).run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")

    class Failing(td.optim.EMA):
        def update(self):
            raise ZeroDivisionError

    trainer = tiny_trainer(tmp_path / "ema", None, steps=4)
    trainer.ema = Failing(trainer.parameters, 0.9)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert checkpoint.read_step(tmp_path / "ema") == 0
    assert "step 1 was left half done; the checkpoint of step 0 is kept" in capsys.readouterr().err
