"""The training loop: Algorithm 1 of Ho et al. (2020), and everything around it that keeps a run safe.

Step k is a pure function of the weights, the optimiser's state and k: its batch, flips, noise, times and dropped labels
come from step k of their random streams. So a run that was stopped anywhere goes on bit for bit as if it had not been,
and previews and checkpoints never change it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from tinydiff import optim, random
from tinydiff.autograd.profile import Profile, section
from tinydiff.backend import host_threads, resolve_device
from tinydiff.cuda.capture import wanted
from tinydiff.cuda.compiling import compile_for
from tinydiff.data import Dataset
from tinydiff.diffusion import Diffusion
from tinydiff.dispatch import uses_kernels
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine import threads
from tinydiff.machine.terminal import say
from tinydiff.ranks import world
from tinydiff.runs import ahead, arithmetic, board, checkpoint, fingerprint, lock, memory, resuming, state
from tinydiff.runs.config import TrainConfig
from tinydiff.runs.folder import RunFolder
from tinydiff.runs.gradients import Gradients
from tinydiff.runs.inputs import BY_IMAGE, BY_PART, MASKS, Inputs, check_fit, label_dropout
from tinydiff.runs.interrupts import Interrupts
from tinydiff.runs.loss_scale import LossScale
from tinydiff.runs.measures import Measures
from tinydiff.runs.not_finite import NotFinite
from tinydiff.runs.progress import Progress
from tinydiff.runs.replays import Replays
from tinydiff.runs.results import Results
from tinydiff.runs.shares import all_threads, inputs_of, share_of_batch, threads_of_rank
from tinydiff.runs.witness import Witness
from tinydiff.unet import UNet

READ_EVERY = 25  # steps that are replayed before their losses are read
PREVIEW_STEPS = 50  # of DDIM, for previews and the samples at the end


class Trainer:
    """Trains a network on data and keeps the run in the folder `config.out` (Ho et al., 2020, algorithm 1).

    unet: the network; with `num_classes` it is trained on the data's labels, and if it has a `null_label` as well,
        `config.label_dropout` of them are replaced by that.
    diffusion: what the network is trained for, a `td.diffusion.Diffusion`.
    data: a `td.data.Dataset`, with images of the network's size and channels.
    config: a `TrainConfig`; None: the defaults.
    record: more sections for config.toml, by name; the command line records here what it built the objects from.

    InputError where network, data and config do not fit together.
    """

    def __init__(
        self,
        unet: UNet,
        diffusion: Diffusion,
        data: Dataset,
        config: TrainConfig | None = None,
        record: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.config = config or TrainConfig()
        if self.config.log == "tensorboard":
            board.require()
        self.unet, self.diffusion, self.data = unet, diffusion, data
        self.world = world()
        self.device = resolve_device(self.config.device)
        self.record = record or {"data": {"data": data.source}}
        check_fit(unet, data)
        self.batch_size = share_of_batch(self.config.batch_size, self.world)
        self.threads = threads_of_rank(self.config.threads, self.world)
        self.label_dropout = label_dropout(unet, self.config.label_dropout)
        self.folder = (Witness if self.world.rank else RunFolder)(self.config.out)
        unet.to(self.device)
        self.parameters = list(unet.parameters())
        self.optimizer = optim.Adam(self.parameters, self.config.lr)
        self.ema = optim.EMA(self.parameters, self.config.ema, self.config.ema_start)
        self.generator = random.Generator(self.config.seed)
        self.step, self.masks = 0, BY_IMAGE
        self._inputs: Inputs | None = None
        self.loss_scale = LossScale(self.device, lambda: arithmetic.used(self.config.precision, self.device))
        self._gradients = Gradients(self.optimizer, inputs_of(self), lambda: self.inputs, self.loss_scale)
        self._replays: Replays | None = None
        self._needed = 0  # bytes of the GPU's memory that a step takes beside weights and average
        self.saved_step: int | None = None
        self._fingerprint: fingerprint.Fingerprint | None = None
        self.data_changes: list[str] = []
        self.working = self._changing = self._saving = False  # working: the last `run` came to its first step
        self._done: tuple[float, float, float] | None = None  # what the present step's `train_step` returned
        alone = partial(all_threads, self.config.threads, self.world)
        self.results = Results(self.folder, unet, diffusion, self.ema, self.generator, alone)
        self.measures = Measures(self.folder, unet, diffusion, data, self.config, self.generator, self.device, alone)

    def run(
        self, resume: bool = False, force: bool = False, profile: bool = False, data_changed: bool = False,
        graph: bool = True,
    ) -> int:  # fmt: skip
        """Trains to `config.steps`; returns the last step done, fewer if the minutes were over before, or if SIGINT or SIGTERM
        asked to stop (see `stopped_by`).

        resume: go on from the run's newest checkpoint; of a run that has done its steps, draw the pictures that it lacks.
        force: overwrite an old run. profile: measure where the time of the steps goes, tell it at the end and write it to
        profile.csv. data_changed: with resume, accept data that are not the run's own but of the same size and classes; the
        change is recorded, and the run is not bit for bit what it would have been.
        graph: on a GPU, replay steps as a CUDA graph, unless they are profiled or TINYDIFF_GRAPH is 0; the bits are the same.
        InputError where the folder does not allow it or another process writes to it; RunFailed for a loss that is not
        finite, where the last checkpoint stays as it was, and for a disk that is full. What data, network or an overridden
        method raise reaches the caller as it is. Before any failure but a loss that is not finite the state is saved, unless
        it struck while the weights were being changed, or another of several ranks. What is not the checkpoint, such as
        pictures, may fail with a warning.
        """
        self.profile = Profile() if profile else None
        self.stopped_by: int | None = None
        self.working = self._changing = self._saving = False
        try:
            with self.world.working(), Interrupts() as interrupts:
                self._begin(resume, force, data_changed)
                self.working = True
                computing = arithmetic.computing(self.config.precision, self.device)
                with threads.threads(host_threads(self.device, self.threads)), computing:
                    if graph and not profile and wanted() and isinstance(self.inputs, ahead.Ahead):
                        self._replays = Replays(self.inputs, self._step, self._gradients.cut(self._update))
                    self._train(interrupts)
                    if not interrupts.agreed(self.world):
                        interrupts.release()
                        self._finish()
                    self.stopped_by = interrupts.agreed_on or interrupts.received
        finally:
            self.folder.close()
        return self.step

    @before_work()
    def check_start(self, resume: bool = False, force: bool = False, data_changed: bool = False) -> None:
        """InputError where `run(resume, force, data_changed=data_changed)` could not start. With resume it takes
        weights, optimiser and counters from the run's newest checkpoint. Nothing is written."""
        if not self.folder.locked:
            lock.check_free(self.folder.path)
        if not resume:
            self.config = resuming.settled(self.config, self.device)
            self.folder.check_free(force, self.config.called)
            return
        self.folder.check_resumable()
        if self.folder.starts_again():
            say(f"the run in {self.folder.path} was stopped before it began; starting from step 1")
            return
        self.restore(data_changed)
        if self.step >= self.config.steps and not self.results.missing(self.step):
            raise InputError(
                f"the run in {self.folder.path} has done its {self.step} steps; to go on, give a larger "
                f"{self.config.called('steps')}"
            )

    def _begin(self, resume: bool, force: bool, data_changed: bool) -> None:
        self._gradients.connect()
        with self.world.together():
            if resume:  # so far: the rest is looked at below, once
                with before_work():
                    self.folder.check_resumable()
                    self.config = resuming.settled(self.config, self.device, resuming.metadata_of(self.folder.path))
            else:
                self.check_start(force=force)
            if self.device == "cuda":
                if uses_kernels():
                    sizes = sorted({1, memory.SMALL, self.batch_size})
                    compile_for([partial(self.try_batch, n) for n in sizes], ("draws", "pixels", "updates"))
                needed = self.memory_of_step()
                memory.require_gpu(needed, self.batch_size)
                self._needed = needed.total(self.batch_size) - needed.weights - needed.average
        with self.world.together(), before_work():
            self.folder.acquire()
            if self.world.rank == 0:
                self.check_start(resume, force, data_changed)  # now that nobody else can change anything
            if resume:
                self.folder.put_in_order()
                if self.saved_step is None:  # with what `.starting.toml` says
                    self.save()
                self.folder.rewrite_config(self.config, self.record)
            else:
                self.folder.begin(self.config, self.record, force)
                self.save()
                self.folder.begun()
            wanted = *self.measures.wanted, self.config.log == "tensorboard"
            self.folder.open_log(self.step, *wanted, self.world.size, self.loss_scale.state is not None)
        with self.world.together():
            if self.world.rank:
                self.folder.check_seen()
                self.restore(data_changed)
        if self.world.size > 1:
            data, weights = self._data_fingerprint().text(), f"{self.step} {self._gradients.checksums()}"
            self.world.require_same(resuming.in_common(self.config, self.record) | {"data": data, "weights": weights})

    def _train(self, interrupts: Interrupts) -> None:
        config, images_per_step = self.config, self.config.batch_size * self.config.accumulate
        if self._wants_preview(self.step) and not os.path.exists(self.folder.preview_file(self.step)):
            self.results.preview(self.step, PREVIEW_STEPS)  # the last process was killed before it could
        after, first = partial(self.results.seconds_of_finish, PREVIEW_STEPS), self.step
        progress = Progress(self.step, config.last_step, minutes=config.minutes, after=after)
        try:
            while not interrupts.agreed(self.world, progress.over and self.step > first) and self.step < config.steps:
                start, self._done = time.perf_counter(), None
                warming_up = self.step == first and config.steps > first + 1  # makes the workspaces
                with nullcontext() if self.profile is None or warming_up else self.profile.step():
                    done = self._advance(lambda: self.world.size == 1 and (bool(interrupts.received) or progress.over))
                speed = images_per_step * len(done) / (time.perf_counter() - start)
                last = self.step + len(done)
                for loss, norm, lr in done:
                    self._require_finite(self.step + 1, loss, norm)
                    self.step += 1
                    if self.step == last:
                        self._changing, self._done = False, None
                    if self.world.rank == 0:
                        more = self._between, self.loss_scale.used(self.step)
                        self.measures.log(self.step, loss, norm, lr, speed, *more)
                    progress.update(self.step, loss, speed)
                if self.step % config.save_every == 0:
                    with self._between("saving"):
                        self.save()
                if self._wants_preview(self.step):
                    with self._between("previews"):
                        self.results.preview(self.step, PREVIEW_STEPS)
        except BaseException as error:  # SystemExit and the like as well: it may come from what a caller has put in
            if not (isinstance(error, KeyboardInterrupt) and interrupts.received):  # the second signal stops at once
                self._save_before(error)
            raise
        finally:
            progress.close()
            if self.profile is not None and self.profile.steps:
                with self.results.optional("profile.csv"):
                    self.folder.save_profile(self.profile)
                say(self.profile.table())
        if self.saved_step != self.step:
            self.save()

    def _save_before(self, error: BaseException) -> None:
        """Saves the steps done so far, if they are whole and saving is not what failed. Where the loss became infinite or
        NaN they led there, and the last checkpoint is the better one."""
        if self._saving or isinstance(error, NotFinite):
            return
        if self._done is not None:  # all of the step; what an overridden `train_step` did after it failed
            self.step, self._changing = self.step + 1, False
            self.folder.log(self.step, *self._done, 0.0)
        if self._changing:
            say(f"step {self.step + 1} was left half done; the checkpoint of step {self.saved_step} is kept")
        elif self.saved_step != self.step:
            try:
                self.save()
                say(f"the state of step {self.step} is saved")
            except Exception as other:
                say(f"the state of step {self.step} could not be saved: {other}")

    def _wants_preview(self, step: int) -> bool:
        every = self.config.preview_every
        return self.world.rank == 0 < step and every > 0 and step % every == 0

    def _between(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self.profile is None else self.profile.between(name)

    def _advance(self, stopped: Callable[[], bool]) -> list[tuple[float, float, float]]:
        """The next step, or several where they are replays; what `train_steps` returns."""
        steps = self._next_steps()
        if len(steps) == 1:
            return [self.train_step(steps[0])]
        return self.train_steps(steps, stopped)

    def _next_steps(self) -> range:
        """The steps that are done before anything is read or saved."""
        config, first = self.config, self.step + 1
        own = getattr(self.train_step, "__func__", None) is Trainer.train_step  # else each goes through the caller's
        if self._replays is None or not self._replays.replaying or not own:
            return range(first, first + 1)
        every = config.save_every, config.preview_every, *self.measures.every
        return range(first, min(config.steps, self.step + READ_EVERY, *(-(-first // n) * n for n in every if n)) + 1)

    def train_step(self, step: int) -> tuple[float, float, float]:
        """Step number `step` = 1, 2, ... of Algorithm 1; returns loss, norm of the gradient before clipping, and
        learning rate. RunFailed where loss or norm is not finite."""
        (found,) = self.train_steps(range(step, step + 1))
        self._require_finite(step, *found[:2])
        self._done = found
        return found

    def train_steps(
        self, steps: range, stopped: Callable[[], bool] = lambda: False
    ) -> list[tuple[float, float, float]]:
        """`train_step` for several steps, of which nothing is read before the last; fewer if `stopped()` becomes true. The
        first that is not finite is the last of the result, and none after it has changed anything."""
        found: list[Any] = []
        for step in steps:
            self.optimizer.lr = self.config.learning_rate(step)
            self._changing = self._changing or (self._replays is not None and self._replays.replaying)
            result = (self._replays or self._step)(step)
            self.inputs.launched(step)
            found += [] if result is None else [result]
            if stopped():
                break
        found = found or self.inputs.reports(range(steps.start, step + 1))
        rates = map(self.config.learning_rate, steps)
        found = [(self.loss_scale.taken(i, xs), norm) for i, (xs, norm) in zip(steps, found, strict=False)]
        return [(sum(x / len(xs) for x in xs), norm, lr) for (xs, norm), lr in zip(found, rates, strict=False)]

    def _step(self, step: int) -> Any:
        """Launches a step. Losses and norm, unless they are read later."""
        return self._update(self.gradients(step))

    def _update(self, losses: list[Any]) -> Any:
        self._changing = True  # what fails from here on leaves weights of no step
        with section("clipping, Adam and EMA"):
            common = self.config.clip or math.inf, self.ema, self.inputs.prepared, self.loss_scale.state
            return self.optimizer.clipped_step(losses, *common)

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)) and not self.loss_scale.skipped(step):
            found = loss, self._gradients.first_non_finite(step), self.saved_step, self.config.called("lr")
            with self.world.together():
                raise NotFinite.at(step, *found)

    def gradients(self, step: int) -> list[Any]:
        """The losses of the parts of a step, arrays (); the gradient of their mean is left in the parameters."""
        with arithmetic.computing(self.config.precision, self.device):
            return self._gradients(step)

    @property
    def inputs(self) -> Inputs:
        """What steps are computed from; on a GPU it lies there before they begin."""
        if self._inputs is None:
            self._inputs = inputs_of(self)
            if ahead.possible(self._inputs):
                self._inputs = ahead.prepared(self._inputs, self.optimizer, self.ema, self._needed, self.loss_scale)
        return self._inputs

    def try_batch(self, n: int) -> None:
        """Computes the gradients for n images and drops them: what a batch costs, without training."""
        with arithmetic.computing(self.config.precision, self.device):
            self._gradients.drop(inputs_of(self), n)

    def memory_of_step(self) -> memory.Estimate:
        """How much memory a step needs, from small batches."""
        weights = sum(p.data.nbytes for p in self.parameters)
        return memory.estimate(self.try_batch, weights, self.batch_size, self.device)

    @at_work()
    def save(self) -> None:
        """Saves averaged and raw weights, optimiser and counters as one checkpoint; an interruption loses nothing."""
        if self.world.rank:
            self.saved_step = self.step
            return
        self._saving = True  # until it has worked
        self.folder.flush()
        metadata = {
            "step": str(self.step),
            MASKS: self.masks,
            **resuming.metadata(self.config, self.record, self.device, self.threads, self.world.size),
            **fingerprint.metadata(self._data_fingerprint(), self.data_changes),
            **self.loss_scale.metadata(),
        }
        names = self.data.class_names
        state.save(self.folder.path, self.unet, self.diffusion, names, self.optimizer, self.ema, metadata)
        self.saved_step, self._saving = self.step, False

    def _data_fingerprint(self) -> fingerprint.Fingerprint:
        if self._fingerprint is None:
            self._fingerprint = fingerprint.of(self.data, self.unet.num_classes is not None)
        return self._fingerprint

    def restore(self, data_changed: bool = False) -> None:
        """Puts the run's newest checkpoint into network, EMA, optimiser and counters.

        data_changed: accepts data that differ from the run's, as `run` does. InputError where there is no checkpoint, or
        where the data are others and that is not accepted.
        """
        found = checkpoint.find_own(self.folder.path)
        if found is None:
            raise InputError(f"the checkpoint of the run in {self.folder.path} is gone")
        _, metadata = checkpoint.load_training_state(found, arrays=False)
        self.data_changes = fingerprint.changes(metadata.get(fingerprint.CHANGES))
        known = metadata, found, data_changed
        changed = resuming.compare_data(self.folder.path, self.data, self._data_fingerprint, *known)
        self.step, metadata = state.load(found, self.unet, self.optimizer, self.ema)
        self.config = resuming.settled(self.config, self.device, metadata)
        self.loss_scale.restore(metadata)
        self.saved_step, self.masks = self.step, metadata.get(MASKS, BY_PART)
        if changed is not None:
            self.data_changes.append(f"from step {self.step + 1} on: {changed}")
            say(f"the data have changed: {changed}; from here on the run is not what it would have been with the old")
        resuming.compare_environment(metadata, self.device, self.threads, self.world.size)
        arithmetic.tell(self.config.precision, self.device)

    def _finish(self) -> None:
        if self.world.rank == 0:
            self.results.finish(self.step, PREVIEW_STEPS)
