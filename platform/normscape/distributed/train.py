"""Stages `gan` and `auxiliary` on the workers of Ray Train.

The training loops are those of `normscape.training`; all they see of Ray is a communicator. The stage's folder lies on
storage that every machine has under the same path. Rank 0 writes the checkpoints there, and every attempt, of Ray or of a
person, goes on from the newest: what Ray itself is told of a checkpoint is only where it lies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from normscape import errors
from normscape.config import Config
from normscape.distributed.bridge import BridgeRecorder, deliver, open_mailbox
from normscape.distributed.workers import Workers, check_batch, sharing
from normscape.errors import UserError
from normscape.stages.core import StageContext, StageFunction
from normscape.stages.files import discard
from normscape.training.communicator import ProcessGroup
from normscape.training.recorder import Recorder, SilentRecorder

TRAINED = ("auxiliary", "gan")
"""Stages that train on several workers."""
_RAY_FOLDER = "ray"
_DONE = -1


def training_stages(workers: Workers) -> dict[str, StageFunction]:
    """Functions of the stages that these workers train, by stage; give them to `run_stages(extra=...)`."""
    return {name: partial(_run, name, workers) for name in TRAINED}


# ---- the driver ------------------------------------------------------------------------------------------------------


def _run(stage: str, workers: Workers, context: StageContext) -> dict[str, float]:
    """Train on the workers, from the newest checkpoint of the stage's folder.

    Raises:
        UserError: the workers cannot share the batch, or what a worker raised.
    """
    config = context.config
    if stage == "gan":
        check_batch(config, workers)
    least, most = workers.least, workers.most
    if least == most:  # auxiliary batches are smaller: some workers may be too many
        least = most = sharing(stage, config, most)
    gpus = workers.gpus_each(config)
    mailbox = open_mailbox()
    discard(context.folder / _RAY_FOLDER)  # of an attempt that was cut off
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={
            "stage": stage,
            "config": _anywhere(config).model_dump(mode="json"),
            "folder": str(context.folder),
            "inputs": {name: str(folder) for name, folder in context.inputs.items()},
            "key": context.key,
            "gpu": gpus > 0,
            "mailbox": mailbox,
        },
        # NCCL refuses two workers on one GPU
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            # Ray takes a finished run of the same name for this one
            name=f"{config.name}-{stage}-{uuid.uuid4().hex[:8]}",
            storage_path=str(context.folder / _RAY_FOLDER),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": {k: v for k, v in os.environ.items() if k.startswith("NORMSCAPE_")}},
        ),
    )
    try:
        result = _fit(trainer, mailbox, context.recorder)
    finally:
        with contextlib.suppress(Exception):  # Ray may be gone
            ray.kill(mailbox)
    metrics: dict[str, float] = result.return_value or {}
    _stage_module(stage).clear(context)
    discard(context.folder / _RAY_FOLDER)
    return metrics


def _anywhere(config: Config) -> Config:
    """The configuration with absolute paths: workers have other working directories."""
    return config.model_copy(update={"data": config.data.with_absolute_paths()})


def _fit(trainer: ray.train.torch.TorchTrainer, mailbox: ActorHandle, recorder: Recorder) -> Any:
    """Train in a thread, and meanwhile pass on what rank 0 has to say.

    Signals reach the main thread: in the other, Ray does not take Ctrl-C for itself.
    """
    ended: dict[str, Any] = {}

    def fit() -> None:
        try:
            ended["result"] = trainer.fit()
        except BaseException as error:
            ended["error"] = error

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while True:
        alive = thread.is_alive()
        letters = ray.get(mailbox.take.remote())
        for letter in letters:
            if letter["kind"] == "user error":
                thread.join(10.0)  # the other workers as a rule found the same mistake
                raise getattr(errors, letter["type"], UserError)(letter["text"])
            deliver(letter, recorder)
        if not alive and not letters:
            break
    if "error" in ended:
        raise _plain(ended["error"])
    return ended["result"]


def _plain(error: BaseException) -> BaseException:
    """What Ray Train raised, with the worker's own error behind it; lost workers are nobody's bug."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    own = [failure._base_exc for failure in failures.values() if isinstance(failure, UserExceptionWithTraceback)]
    if own:
        error.__cause__ = own[0]
    elif failures:
        return UserError(
            f"workers {', '.join(map(str, sorted(failures)))} were lost, and --max-failures was used up: were they killed, or is "
            "memory short? run again to go on from the last checkpoint"
        )
    return error


def _stage_module(stage: str) -> ModuleType:
    return importlib.import_module(f"normscape.stages.{stage}")


# ---- the workers -----------------------------------------------------------------------------------------------------


def _work(job: Mapping[str, Any]) -> dict[str, float] | None:
    """One worker of one attempt: train from the newest checkpoint; rank 0 then writes and measures what came out.

    Returns:
        The stage's headline metrics on rank 0.
    """
    config = Config.model_validate(job["config"])
    rank, size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    recorder = BridgeRecorder(job["mailbox"]) if rank == 0 else SilentRecorder()
    context = StageContext(
        config=config,
        folder=Path(job["folder"]),
        inputs={name: Path(folder) for name, folder in job["inputs"].items()},
        device=ray.train.torch.get_device() if job["gpu"] else torch.device("cpu"),
        recorder=recorder,
        key=job["key"],
    )
    able = sharing(job["stage"], config, size)
    communicator = ProcessGroup() if able == size else ProcessGroup(first=able)
    if rank >= able:
        _stand_by()
        return None
    saved = partial(_report, context.folder, announce=able < size)
    module = _stage_module(job["stage"])
    try:
        _check_folder(context.folder)
        trained = module.train(context, communicator, saved)
        if able < size:
            ray.train.collective.broadcast_from_rank_zero(_DONE)
        return module.finish(context, trained) if rank == 0 else None
    except UserError as error:
        # trying again would not help: the driver is told, and the worker ends as if all were well
        ray.get(job["mailbox"].fail.remote(type(error).__name__, str(error)))
        return None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not there on {ray.util.get_node_ip_address()}: the runs folder must lie on storage that all machines "
            "of the cluster have under the same path (`--runs-dir`)"
        )


def _report(folder: Path, step: int, *, announce: bool) -> None:
    """Tell Ray where the checkpoint of a step lies; every worker waits for the others here."""
    if announce:
        ray.train.collective.broadcast_from_rank_zero(step)
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report({"step": step})
        return
    with tempfile.TemporaryDirectory() as pointer:
        (Path(pointer) / "checkpoint.json").write_text(json.dumps({"folder": str(folder), "step": step}), encoding="utf-8")
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(pointer))


def _stand_by() -> None:
    """What a worker does that is one too many to share the batch: it waits, and meets the others at their checkpoints."""
    while True:
        step = ray.train.collective.broadcast_from_rank_zero(None)
        if step == _DONE:
            return
        ray.train.report({"step": step})
