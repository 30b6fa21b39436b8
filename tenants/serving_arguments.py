"""Arguments a tenant may give an endpoint: a typed allow-list, nothing else.

The runtime renders these into its program's own flags; a value never becomes a flag, because each is a
number, a boolean or a word of an enum. Source of the flags: `vllm serve --help`, vLLM 0.32.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tenants.errors import InvalidSpec


class ServingArguments(BaseModel):
    """What may be set per revision; everything is optional."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_model_len: Annotated[int, Field(ge=256, le=2_097_152)] | None = None
    """Longest context in tokens; less needs less memory."""
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Requests served at the same time."""
    gpu_memory_utilization: Annotated[float, Field(ge=0.1, le=0.98)] | None = None
    """Part of the GPU's memory that weights and KV cache may take."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    quantization: Literal["fp8", "awq", "gptq", "compressed-tensors"] | None = None
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=256, le=1_048_576)] | None = None
    tool_call_parser: Literal["hermes", "llama3_json", "mistral", "qwen3_coder"] | None = None
    reasoning_parser: Literal["deepseek_r1", "qwen3", "gpt_oss"] | None = None
    enforce_eager: bool | None = None


def checked_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that were set, checked. Raises `InvalidSpec` naming each field."""
    try:
        return ServingArguments.model_validate(dict(given)).model_dump(exclude_none=True)
    except ValidationError as error:
        errors = [
            {"field": "arguments." + ".".join(str(p) for p in item["loc"]), "reason": item["msg"]}
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise InvalidSpec(errors[0]["reason"], field=errors[0]["field"], errors=errors) from None
