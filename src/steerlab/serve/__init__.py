"""An OpenAI-compatible server that steers each request on its own: `steerlab serve`.

    HTTP (event loop)                                   the model (one thread)
    guard ─► app ─► schema, resolve, store ──Job──► scheduler ─► engines.hf_serving.Running
      ▲                    answers ◄──────events──────┘

A request is read whole, checked, and resolved into one steering before anything runs; what can't be resolved exactly fails
with a sentence, and is never served unsteered.
"""
