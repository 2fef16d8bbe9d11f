"""The pictures of a run: previews on the way, and at the end the loss, a sheet of samples and how they came out of noise.

None of them may end a run: what cannot be drawn or written is told. Each depends on the state of its step alone, so one that a
killed process did not get to is drawn later, the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any

from tinydiff import optim, random
from tinydiff.diffusion import Diffusion
from tinydiff.errors import InputError, named
from tinydiff.machine.terminal import quoted, say
from tinydiff.runs import pictures
from tinydiff.runs.folder import RunFolder
from tinydiff.runs.sheets import Sheet, draw_sheet, work_of_sheet
from tinydiff.unet import UNet


class Results:
    """Draws from the averaged weights of a run into its folder.

    folder: of the run. unet, diffusion: what is trained. ema: its averages. generator: its seed draws the noise. alone: gives a
    block to draw in.
    """

    def __init__(
        self, folder: RunFolder, unet: UNet, diffusion: Diffusion, ema: optim.EMA, generator: random.Generator,
        alone: Callable[[], AbstractContextManager[Any]],
    ) -> None:  # fmt: skip
        self.folder, self.unet, self.diffusion, self.ema, self.generator = folder, unet, diffusion, ema, generator
        self._alone = alone
        self.loss, self.sheet, self.animation = (folder.path / n for n in ("loss.png", "samples.png", "samples.gif"))
        self._each: float | None = None  # seconds that a call of the network takes for a picture, measured

    def seconds_of_finish(self, steps: int, images_per_second: float) -> float:
        """About how long `finish` will take: as the last preview did or, before there is one, a third of what training takes
        for an image, at images_per_second, for each call of the network."""
        each = 1 / (3 * images_per_second) if self._each is None and images_per_second else self._each or 0.0
        return each * work_of_sheet(self.unet) * min(steps, self.diffusion.schedule.T)

    def preview(self, step: int, steps: int) -> None:
        """A small sheet of samples of a training step, drawn in so many steps of DDIM."""
        with self.optional(f"the preview of step {step}"):
            start = time.perf_counter()
            sheet = self._draw(self.generator.at(random.PREVIEWS, step), steps, each=2)
            if sheet is not None:
                calls = work_of_sheet(self.unet, each=2) * min(steps, self.diffusion.schedule.T)
                self._each = (time.perf_counter() - start) / calls
                pictures.save_png(self.folder.preview_file(step), sheet.picture())
                self.folder.show(step, "samples", sheet.picture())

    def finish(self, step: int, steps: int) -> None:
        """The pictures of a run that is finished at a training step, drawn in so many steps of DDIM. samples.png comes last
        and says in itself of which step it is."""
        with self.optional("loss.png"):
            pictures.plot_loss(self.folder.log_file, self.loss)
        say("drawing samples")
        try:
            with self.optional("the samples"):
                sheet = self._draw(self.generator.at(random.SAMPLING), steps, animate=True)
                if sheet is not None:
                    pictures.save_gif(self.animation, sheet.animation())
                    pictures.save_png(self.sheet, sheet.picture(), {"step": str(step)})
                    self.folder.show(step, "samples at the end", sheet.picture())
        except KeyboardInterrupt:
            say(f"the training is done and saved; draw samples with: tinydiff sample {quoted(self.folder.path)}")
            raise

    def missing(self, step: int) -> bool:
        """Whether a run that has done its last step lacks pictures of its end."""
        if not self.animation.exists() or pictures.read_text(self.sheet, "step") != str(step):
            return True
        return find_spec("matplotlib") is not None and not self.loss.exists()

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """A block in which a failure is told and nothing more. what: it makes, for that line."""
        try:
            yield
        except Exception as error:
            say(f"warning: {what} could not be made ({type(error).__name__}: {error}); the run is not affected")

    def _draw(self, generator: random.Generator, steps: int, **options: Any) -> Sheet | None:
        """A sheet of samples; None, and a line that says why, where so many classes do not fit into memory."""
        steps = min(steps, self.diffusion.schedule.T)
        try:
            with self._alone(), self.ema.applied():
                return draw_sheet(self.unet, self.diffusion, generator, steps=steps, **options)
        except InputError as error:
            say(f"no samples are drawn: {error}; draw fewer from {self.folder.path}, with {named('n', 16)}")
            return None
