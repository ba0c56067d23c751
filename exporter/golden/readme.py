"""cases/README.md: how to replay a bundle's vectors in any language, in ten steps made from its options."""

from __future__ import annotations

from kvparity.exporter.contract.bundle import Manifest
from kvparity.exporter.contract.spec import ExportOptions

__all__ = ["LAYOUTS", "readme"]

_DYNAMIC = """# Replaying these vectors

1. `NAME.npz` holds the inputs of a case: `input_ids`, `attention_mask`, `position_ids`, and its calls: `chunks`.
2. Call `i` carries the tokens from `start = sum(chunks[:i])` to `stop = start + chunks[i]`.
3. Call 0 runs the graph named in `first`, every later one `decode.onnx`.
4. {feeds}
5. A decode call also takes every `past_key_values.N.PART`: the `present.N.PART` of the call before, or zeros, no rows.
   {moves}
6. `cases` in `../manifest.json` says which sequence a row begins, and after how much padding: slot `s` of the row is
   position `s - pad` of `../vectors/SEQUENCE.npz`.
7. Expect there {values} of the slots from {first} to `stop`, and `cache.N.key/value` of the slots
   from {kept} to `stop` (where there are `rows`, those slots alone were recorded).
8. Leave out slots whose mask is 0. Every other value must be finite and within the tolerance of `golden.json`.
9. `golden.json` lists calls as ONNX TensorProtos (`NAME/test_data_set_I/{{input,output}}_J.pb`, in graph order) with
   sha256, and which output becomes which input of the next call (`chain`); a call with `continues` takes the outputs of
   that call instead, cut to its `start` slots, older rows from what that call was fed with.
10. {replay}
"""
_STATIC = """# Replaying these vectors

1. `NAME.npz` holds the inputs of a case: `input_ids`, `attention_mask`, `position_ids`, and its steps: `chunks`.
2. Step `i` carries the tokens from `start = sum(chunks[:i])` to `stop = start + chunks[i]`.
3. Steps run `prefill.onnx`, but those of one token `decode.onnx`, and the first one only where `first` is decode.
4. A step longer than {chunk} tokens is cut into calls; zeros fill the last one's `input_ids`, `position_ids`.{batch}
5. `attention_mask` holds zeros after the call's last token; `cache_position` each token's slot, -1 for padding.
6. Caches are buffers, zeros at first, then what the call before returned; slot `s` lies in row `s mod capacity`, which
   is {capacity}; the newest `min(stop, capacity)` slots count.
   {moves}
7. `cases` in `../manifest.json` says which sequence a row begins, and after how much padding: slot `s` of the row is
   position `s - pad` of `../vectors/SEQUENCE.npz`. Expect there {values} of the slots from {first} to
   `stop`, and `cache.N.key/value` (where there are `rows`, those slots alone were recorded).
8. Leave out slots whose mask is 0. Every other value must be finite and within the tolerance of `golden.json`.
9. `golden.json` lists calls without padding as ONNX TensorProtos (`NAME/test_data_set_I/{{input,output}}_J.pb`, in
   graph order) with sha256, and which output becomes which input of the next call (`chain`).
10. {replay}
"""
LAYOUTS = {"dynamic": _DYNAMIC, "static": _STATIC}
_FEEDS = "Feed `input_ids[:, start:stop]`, `position_ids[:, start:stop]`, `attention_mask[:, :stop]`."
_HOST = (
    "Feed `input_ids[:, start:stop]`, and what `host_inputs` in `../manifest.json` makes of\n"
    "   `attention_mask[:, :stop]` and `position_ids[:, start:stop]`."
)
_ROWS = "`max(stop - {kept}, 0)` in a slot with window W and from `0` in others"
_MOVES = (
    "Where a case has `moves` in `../manifest.json`, a call starts at slot `start`, carries the case's\n   "
    "`rows`, and continues for each the caches of `past` = [call, row of its batch], cut to `start` slots\n   "
    "(older rows are those that it was fed with, new padding is zeros); without `past`, the caches in hand,\n   "
    "cut to `start` slots; at slot 0, none."
)
_REPLAY = (
    "`python ../verify.py` does all of this with numpy and onnxruntime: exit 0 match, 1 mismatch, 2 could not tell."
)


def readme(manifest: Manifest) -> str:
    """The page of a bundle in the dynamic or the static layout; its options decide every shape and range."""
    options, model = manifest.options, manifest.model
    values = "`logits`"
    if manifest.head is not None:
        values = "the 64 largest logits (`top_logits` at `top_ids`) and 256 more (`column_logits` at `column_ids`)"
    slides = options.bounded and any(slot.window is not None for slot in model.slots)
    small = slides and any(options.ring(slot) for slot in model.slots)
    words = {
        "values": values,
        "first": "`stop - 1` (the graphs return each call's last position alone)"
        if options.logits == "last"
        else "`start`",
        "feeds": _HOST if manifest.host_inputs else _FEEDS,
        "kept": _ROWS.format(kept=_kept(options)) if slides else "`0`",
        "capacity": f"a sliding slot's window{f' + {options.rewind}' if options.rewind else ''}, else {options.max_len}"
        if small
        else str(options.max_len),
        "chunk": options.chunk,
        "batch": f" A call takes {options.batch} rows; the last row stands in where a case has fewer."
        if (options.batch or 1) > 1
        else "",
        "moves": _MOVES,
        "replay": _replay(manifest),
    }
    return LAYOUTS[options.layout].format(**words)


def _kept(options: ExportOptions) -> str:
    return f"(W - 1 + {options.rewind})" if options.rewind else "(W - 1)"


def _replay(manifest: Manifest) -> str:
    """What replays the vectors: verify.py, but for what numpy or ONNX Runtime's CPU lacks."""
    options = manifest.options
    if options.dtype == "bfloat16":
        return "numpy has no bfloat16, so `../verify.py` refuses this bundle: `kvparity compare` replays it."
    if options.provider != "cpu":
        return f"The graphs are for {options.provider}: `kvparity compare --runner ort:provider={options.provider}`."
    return _REPLAY
