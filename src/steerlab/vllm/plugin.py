"""What vLLM calls in each of its processes, and what is changed there: seven of its methods, each in one place.

* `InputProcessor.process_inputs`: a request's steering is resolved, and its prefix-cache salt set, or it fails;
* `EngineCore.preprocess_add_request`: a steered request that nothing resolved fails, alone;
* `WorkerBase.__init__`: a worker, whichever it is, lays tables, lets blocks pass through them and puts the seam in once its
  model is loaded, and sings the canary once it is compiled;
* `EngineCore.step` and `step_with_batch_queue`: what was read of a request, and what its gate did, go into its output;
* `EngineCore._initialize_kv_caches`: an engine whose workers haven't all done so doesn't start;
* `VllmConfig.compute_hash`: the key of compiled graphs tells apart engines with other tables, or none.

Where the engine has no settings of ours, all this stands aside, but a request that asks to be steered still fails.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

from ..errors import DataError, SteerlabError, UnsupportedError
from ..version import __version__
from .admission import Admission, Asked, Files, asked, kept_folder
from .settings import KEY, Settings
from .telling import Telling

log = logging.getLogger("vllm.steerlab")
MARK = "__steerlab__"
MOST = 4096  # requests that something is to be told of, before aborted ones are looked for


def register() -> None:
    """Change the methods, once in a process. The entry point `vllm.general_plugins`."""
    _keep_folder()
    _around("vllm.config.vllm", "VllmConfig", "compute_hash", _hashed)
    _around("vllm.v1.engine.input_processor", "InputProcessor", "process_inputs", _processed)
    _around("vllm.v1.engine.core", "EngineCore", "preprocess_add_request", _preprocessed)
    _around("vllm.v1.engine.core", "EngineCore", "step", _stepped)
    _around("vllm.v1.engine.core", "EngineCore", "step_with_batch_queue", _stepped)
    _around("vllm.v1.engine.core", "EngineCore", "_initialize_kv_caches", _readied)
    _around("vllm.v1.worker.worker_base", "WorkerBase", "__init__", _made)


def settings_of(config: Any) -> Settings | None:
    """Our settings in a `VllmConfig`."""
    return Settings.read(getattr(config, "additional_config", None))


def _keep_folder() -> None:
    """A folder of this server's own, which its other processes inherit."""
    if "STEERLAB_VLLM_KEPT" not in os.environ:
        folder = tempfile.mkdtemp(prefix="steerlab-vllm-")
        os.environ["STEERLAB_VLLM_KEPT"] = folder
        owner = os.getpid()
        atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)


def _around(module: str, owner: str, name: str, change: Callable[..., Any]) -> None:
    """Replace a method by `change(it, self, …)`. Raises `UnsupportedError` where there is no such method."""
    try:
        cls: Any = getattr(importlib.import_module(module), owner)
        method: Any = vars(cls)[name]
    except (ImportError, AttributeError, KeyError) as problem:
        raise UnsupportedError(
            f"this vLLM has no {module}.{owner}.{name}, which steerlab needs; it was tried with vLLM 0.32."
        ) from problem
    if hasattr(method, MARK):
        return

    @wraps(method)
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(method, self, *args, **kwargs)

    setattr(changed, MARK, True)
    setattr(cls, name, changed)


# --- in all processes ------------------------------------------------------------------------------------------------


def _hashed(method: Any, config: Any, *args: Any, **kwargs: Any) -> str:
    """Graphs that were compiled without tables, with others, or by another version of this code are other graphs."""
    settings, given = settings_of(config), config.additional_config
    if settings is None:
        return method(config, *args, **kwargs)
    if isinstance(given, dict):  # where the steerings are is no part of a graph
        config.additional_config = {k: v for k, v in given.items() if k != KEY}
    try:
        found = method(config, *args, **kwargs)
    finally:
        config.additional_config = given
    shape = (settings.layers, settings.rank, settings.diag, settings.reads, settings.gates, settings.classes)
    return hashlib.sha256(f"{found} steerlab {__version__} {shape} {_code()}".encode()).hexdigest()[:10]


def _code() -> str:
    """A digest of what a graph is traced from."""
    return hashlib.sha256(Path(__file__).with_name("tables.py").read_bytes()).hexdigest()


# --- in the front end ------------------------------------------------------------------------------------------------


def _processed(method: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
    request = method(processor, *args, **kwargs)
    sampling = request.sampling_params
    if sampling is None or (given := asked(sampling.extra_args)) is None:
        return request
    try:
        found = _admitted(processor, given, request)
    except SteerlabError as problem:
        raise _theirs()(str(problem)) from problem  # which vLLM answers with 400
    if sampling.n > 1:
        if found.reads:
            raise _theirs()(
                "read-outs are told of one reply, and this request asks for several (n); ask for each by itself."
            )
        found = replace(found, tell="never")
    elif found.tell == "end" and sampling.stop:  # the front end stops it, at a step that nobody knows before
        found = replace(found, tell="so far")
    sampling.extra_args = {**sampling.extra_args, KEY: found.to_json()}  # a copy of this request's own
    if found.salt:
        request.cache_salt = f"{found.salt}:{request.cache_salt}" if request.cache_salt else found.salt
    return request


def _theirs() -> type[Exception]:
    """The error by which vLLM tells that a request was wrong, rather than the server."""
    exceptions: Any = importlib.import_module("vllm.exceptions")
    return getattr(exceptions, "VLLMValidationError", DataError)


def _admitted(processor: Any, given: object, request: Any) -> Asked:
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        raise UnsupportedError("a prompt of embeddings has no tokens, so positions mean nothing there.")
    return admission(processor).resolve(given, request.prompt_token_ids)


def admission(processor: Any) -> Admission:
    """A front end's own. Raises `UnsupportedError` for an engine that can't be steered."""
    found: Admission | None = getattr(processor, MARK, None)
    if found is None:
        found = _admission(processor)
        setattr(processor, MARK, found)
    return found


def _admission(processor: Any) -> Admission:
    from .served import head_of, known

    config = processor.vllm_config
    settings = settings_of(config)
    if settings is None:
        raise UnsupportedError(
            "this engine was started without steerlab; give additional_config={'steerlab': {'steerings': FOLDER}}"
            " (--additional-config on the command line)."
        )
    if reasons := _reasons(config):
        raise UnsupportedError(f"this engine can't be steered exactly: {'; '.join(reasons)}.")
    model = config.model_config
    tokenizer = _tokenizer(model)
    return Admission(
        settings.folder, Files(kept_folder()), settings.size(**_sizes(config)),
        known(model.model, model.revision, tokenizer), head_of(tokenizer),
        classes=settings.classes, adopt=settings.adopt,
    )  # fmt: skip


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.tokenizer, revision=model.tokenizer_revision)


def _sizes(config: Any) -> dict[str, int]:
    text = config.model_config.hf_text_config
    requests = int(config.scheduler_config.max_num_seqs)
    return {"depth": int(text.num_hidden_layers), "width": int(text.hidden_size), "requests": requests}


def _reasons(config: Any) -> list[str]:
    """Why an engine with this configuration isn't steered, in words."""
    reasons: list[str] = []
    parallel = config.parallel_config
    if config.speculative_config is not None:
        reasons.append("it decodes speculatively, and drafts would be made unsteered (start it without)")
    if parallel.pipeline_parallel_size > 1:
        reasons.append("its blocks are spread over pipeline stages (use tensor parallelism)")
    if parallel.enable_dbo:
        reasons.append("it runs batches in two overlapping halves (start it without --enable-dbo)")
    if getattr(config.compilation_config.pass_config, "enable_sp", False):
        reasons.append("it spreads tokens over devices (sequence parallelism; switch enable_sp off)")
    return reasons


# --- in the engine's core and its workers ----------------------------------------------------------------------------


@dataclass
class _Core:
    """What an engine's core knows of us, and of the requests of which something is to be told."""

    settings: Settings | None
    files: Files
    telling: dict[str, Telling] = field(default_factory=dict[str, "Telling"])


def _core(core: Any) -> _Core:
    found: _Core | None = getattr(core, MARK, None)
    if found is None:
        found = _Core(settings_of(core.vllm_config), Files(kept_folder()))
        setattr(core, MARK, found)
    return found


def _preprocessed(method: Any, core: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """A request that asks to be steered, and whose steering can't be had here, fails alone and before it runs."""
    sampling = request.sampling_params
    given = None if sampling is None else asked(sampling.extra_args)
    if given is None:
        return method(core, request, *args, **kwargs)
    known = _core(core)
    if known.settings is None:
        raise UnsupportedError("a steered request came to an engine that was started without steerlab.")
    found = Asked.from_json(given)
    if not (request.cache_salt or "").startswith(found.salt):
        raise UnsupportedError("a steered request came without its salt; it would share a cache with unsteered ones.")
    digests = [*(p.digest for p in found.parts), *(digest for digest, _ in found.reads)]
    missing = [digest[:12] for digest in digests if not known.files.has(digest)]
    if missing:
        raise UnsupportedError(f"the engine doesn't find the steerings {', '.join(missing)}; it is not served.")
    done = method(core, request, *args, **kwargs)
    if found.tell != "never":
        known.telling[request.request_id] = Telling.of(found, known.files)
        if len(known.telling) > MOST:  # those that were aborted are nobody's
            there = core.scheduler.requests
            known.telling = {name: one for name, one in known.telling.items() if name in there}
    return done


def _stepped(method: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    """What the workers have found of requests goes into their outputs, where vLLM's answers have a field that they hand on."""
    result = method(core, *args, **kwargs)
    known: _Core | None = getattr(core, MARK, None)
    if known is None or not known.telling or not result[0]:
        return result
    outputs = [o for many in result[0].values() for o in many.outputs if o.request_id in known.telling]
    due: list[tuple[Any, Telling, bool]] = []
    for output in outputs:
        telling, over = known.telling[output.request_id], output.finish_reason is not None
        if over or telling.when != "end":
            due.append((output, telling, over))
    if due:
        asks = [(output.request_id, telling.told, over) for output, telling, over in due]
        found: list[Any] = core.model_executor.collective_rpc("steerlab_found", args=(asks,))[0]
        for (output, telling, over), one in zip(due, found, strict=True):
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: telling.words(one)}
            if over:
                del known.telling[output.request_id]
    return result


def _readied(method: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    """Every worker says that it is ready to steer, or the engine doesn't start: a plug-in may be missing in a process."""
    result = method(core, *args, **kwargs)
    if settings_of(core.vllm_config) is not None:
        try:
            told: list[Any] = core.model_executor.collective_rpc("steerlab_told")
        except Exception as problem:
            raise UnsupportedError(
                "a worker of this engine can't steer, since steerlab's plug-in isn't loaded in its process (is steerlab installed"
                f" there, and does VLLM_PLUGINS leave it in?): {problem}"
            ) from problem
        log.info("steerlab: %d worker(s): %s", len(told), told[0])
    return result


def _made(method: Any, worker: Any, *args: Any, **kwargs: Any) -> None:
    """A worker is made: what it does when its model is loaded, and when it is compiled."""
    method(worker, *args, **kwargs)
    settings = settings_of(worker.vllm_config)
    if settings is None:
        return
    load, warm = worker.load_model, worker.compile_or_warm_up_model

    def loaded(*args: Any, **kwargs: Any) -> Any:
        done = load(*args, **kwargs)
        laid = _install(worker.model_runner, settings)
        setattr(worker, MARK, laid)
        worker.steerlab_found = laid[1].watch.told
        worker.steerlab_told = lambda: "tables are laid"
        return done

    def warmed(*args: Any, **kwargs: Any) -> Any:
        done = warm(*args, **kwargs)
        if settings.canary:
            from .canary import sing

            found = sing(worker.model_runner, *getattr(worker, MARK))
            worker.steerlab_told = lambda: found
        return done

    worker.load_model, worker.compile_or_warm_up_model = loaded, warmed


def _install(runner: Any, settings: Settings) -> Any:
    from .batch import Filler
    from .seams import Planner, seam
    from .tables import Tables, attach

    config = runner.vllm_config
    if reasons := _reasons(config):
        raise UnsupportedError(f"this engine can't be steered exactly: {'; '.join(reasons)}.")
    assert settings.folder is None or settings.folder.is_dir()  # it has raised for another one
    size = settings.size(**_sizes(config))
    compiled = int(config.compilation_config.mode or 0) != 0 or bool(getattr(runner, "use_cuda_graph", False))
    tokens = max(int(config.scheduler_config.max_num_batched_tokens), int(config.scheduler_config.max_num_seqs))
    tables = Tables(size, tokens + 1024, runner.device, always=compiled)
    attach(runner.get_model(), tables)
    filler = Filler(tables)
    which = seam(runner, filler, Planner(Files(kept_folder())))
    log.info("steerlab: %d blocks, %d rows of rank %d, %.1f MiB of tables, %s runner, %s", len(size.layers), size.rows - 1,
             size.rank, size.bytes / 2**20, which, "in the graph" if compiled else "eager")  # fmt: skip
    return tables, filler
