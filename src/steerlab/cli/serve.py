"""`steerlab serve`: an OpenAI-compatible server that steers each request on its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, nearest
from .common import Adopt, BatchSize, Config, Device, Dtype, Model, Quantize, Revision, TemplateOption, precision

KEY = "STEERLAB_API_KEY"
ENGINES = ("hf", "vllm")


def serve(
    steering: Annotated[list[Path] | None, typer.Argument(help="Steering files to serve, each under its file's name, beside those in the store.")] = None,
    store: Annotated[Path, typer.Option(help="Folder that uploaded steerings are kept in.")] = Path("steerings"),
    host: Annotated[str, typer.Option(help="Address; other than this machine's own it takes keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="YAML file `keys: [{name, key or sha256, scopes: [use, upload, admin]}]`; the variable STEERLAB_API_KEY is an admin key.")] = None,
    engine: Annotated[str, typer.Option(help="What runs the model: hf (transformers), or vllm (stock vLLM with steerlab's plug-in; extra vllm).")] = "hf",
    engine_options: Annotated[str | None, typer.Option(help='vLLM\'s own arguments as JSON, e.g. {"max_model_len": 4096}; its tables under "additional_config".')] = None,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    served_model_name: Annotated[str | None, typer.Option(help="What requests call the model; without: its name, or the last part of its path.")] = None,
    adopt: Adopt = False,
    batch_size: BatchSize = 64,
    waiting: Annotated[int, typer.Option(min=0, help="Replies that may wait beyond these; more get 429.")] = 256,
    most_tokens: Annotated[int, typer.Option(min=1, help="Longest reply that may be asked for.")] = 1024,
    prefill: Annotated[int, typer.Option(min=1, help="Prompt tokens read between two steps of running replies.")] = 4096,
    connections: Annotated[int, typer.Option(min=1, help="Connections that may be open; those beyond get 503.")] = 2048,
    peer_connections: Annotated[int, typer.Option(min=0, help="Of these, the most of one client (address); behind a proxy all come from one: 0 sets no limit.")] = 512,
    body: Annotated[int, typer.Option(min=1, help="Largest request, in bytes.")] = 1 << 20,
    upload: Annotated[int, typer.Option(min=1, help="Largest steering, in bytes.")] = 16 << 20,
    stored: Annotated[int, typer.Option(min=0, help="Steerings that are kept.")] = 1000,
    rate: Annotated[float, typer.Option(min=0, help="Requests a minute and key; 0: as many as come.")] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take, waiting included.")] = 120.0,
    patience: Annotated[float, typer.Option(help="Seconds that a client has for its headers, and for its body.")] = 10.0,
    drain: Annotated[float, typer.Option(help="Seconds that running requests have once the server is told to end.")] = 60.0,
    cors: Annotated[list[str] | None, typer.Option(help="Origin whose pages may call, such as https://example.org.")] = None,
    monitor: Annotated[list[str] | None, typer.Option(help="Steering whose axis is read on every request, for /metrics.")] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse strengths beyond a steering's calibrated range, and steerings without one.")] = False,
    shared: Annotated[bool, typer.Option("--shared", help="Other servers keep steerings in the same folder.")] = False,
    replicas: Annotated[int, typer.Option(min=0, help="Servers behind one address, on Ray Serve, each with an engine of its own; 0: this process alone.")] = 0,
    most_replicas: Annotated[int | None, typer.Option(min=1, help="Replicas at busy times.")] = None,
    cpus: Annotated[float, typer.Option(min=0, help="Processors for each replica.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs for each replica.")] = 0.0,
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster to deploy on; what is deployed there is replaced a replica at a time. Without: one is started here.")] = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Serve a model over HTTP as OpenAI's interface has it, with a steering for each request."""
    try:
        import fastapi  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import uvicorn  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as problem:
        raise ConfigError(f"the server needs {problem.name}; install steerlab[serve].") from problem
    from ..loading import load, load_vllm
    from ..serve.guard import log_lines, tell
    from ..serve.keys import Keys
    from ..serve.locks import Held
    from ..serve.run import serve as run
    from ..serve.service import Service
    from ..serve.settings import Settings
    from ..serve.store import readable

    settings = Settings(
        store=store, rows=batch_size, waiting=waiting, prefill=prefill, most_tokens=most_tokens,
        default_tokens=min(256, most_tokens), body=body, upload=upload, stored=stored, rate=rate, timeout=timeout,
        patience=patience, drain=drain, cors=tuple(cors or ()), monitors=tuple(monitor or ()), log_prompts=log_prompts,
        strict=strict, shared=shared, adopt=adopt,
        name=served_model_name, connections=connections, peer=peer_connections,
    )  # fmt: skip
    log_lines()
    known = Keys.read(keys, os.environ.get(KEY))
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}. {nearest(engine, ENGINES)}")
    if engine == "vllm" and device is not None:
        raise ConfigError("vLLM chooses its device itself; leave --device out.")
    if engine != "vllm" and engine_options is not None:
        raise ConfigError("--engine-options are vLLM's; give --engine vllm with them.")
    if replicas and engine == "vllm":
        raise ConfigError(
            "replicas run the Hugging Face engine; for vLLM start one server for each (--engine vllm) with --shared."
        )
    if not replicas:
        Held(store, shared=shared).check()  # before a model is loaded for nothing
    if replicas:
        from ..serve.replicas import Plan, serve_replicas

        plan = Plan(
            model, replace(settings, store=store.resolve(), shared=True), known, tuple(path.resolve() for path in steering or ()),
            revision, precision(dtype, quantize), device, template, replicas, most_replicas, cpus, gpus,
        )  # fmt: skip
        tell(f"deploying {replicas} replicas of {model}")
        serve_replicas(
            plan,
            host,
            port,
            address=ray_address,
            told=lambda address: tell(f"serving {model} on {address} until a signal comes"),
        )
        return
    tell(f"loading {model}")
    runs = (
        load_vllm(
            model, steerings=[*(steering or ()), *readable(store)], revision=revision, dtype=precision(dtype, quantize),
            template=template, rows=batch_size, options=engine_options,
        )
        if engine == "vllm"
        else load(model, revision=revision, dtype=precision(dtype, quantize), device=device, template=template, batch_size=batch_size)
    )  # fmt: skip
    service = Service(runs, settings, known)
    for path in steering or ():
        service.bring(path)
    run(service, host, port, told=lambda address: tell(f"serving {service.model} on {address} until a signal comes"))
