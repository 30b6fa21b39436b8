"""vLLM's last words in plain ones."""

from __future__ import annotations

import pytest

from provisioners.gateway.engine import Load, address_of, load_in
from provisioners.sandbox.vllm_words import why_it_ended
from provisioners.serving.failures import words_of

NO_CACHE = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."
TOO_LONG = (
    "ValueError: To serve at least one request with the models's max seq len (32768), (4.00 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.35 GiB). Based on the available memory, the estimated "
    "maximum model length is 10992. Try increasing `gpu_memory_utilization`"
)
LONGER_THAN_THE_MODEL = (
    "ValueError: User-specified max_model_len (9000) is greater than the derived max_model_len "
    "(max_position_embeddings=2048 or model_max_length=None in model's config.json)."
)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (TOO_LONG, "max_model_len can be 10992 at most there"),
        (NO_CACHE, "the model leaves no GPU memory for requests"),
        (f"RuntimeError: Engine core initialization failed.\n{NO_CACHE}", "the model leaves no GPU memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "its GPU has too little memory"),
        ("OSError: You are trying to access a gated repo.", "the weights may not be read"),
        ("vllm serve: error: unrecognized arguments: --nonsense", "does not take one of its arguments"),
        ("OSError: [Errno 28] No space left on device", "the disk that it loads its weights to is full"),
        (
            "Total number of attention heads (32) must be divisible by tensor parallel size (3).",
            "a model of 32 attention heads cannot be split over 3 GPUs",
        ),
        (
            LONGER_THAN_THE_MODEL,
            "the model takes a context of 2048 tokens at most, and 9000 were asked for",
        ),
        ("Please pass the argument `trust_remote_code=True` to allow custom code to be run.", "a program of its own"),
        ("INFO Initializing a V1 LLM engine (v0.32.0) with config: trust_remote_code=False, dtype=torch.bfloat16", ""),
        ("INFO 03-01 10:00:00 Starting vLLM API server", ""),
        ("", ""),
    ],
)
def test_a_log_that_ends_with_what_is_known_is_told_in_plain_words(log: str, words: str) -> None:
    assert words in words_of(log)
    assert bool(words) is bool(words_of(log))


def test_nothing_of_a_log_but_numbers_is_taken_over() -> None:
    log = "huggingface_hub.errors.GatedRepoError: 401 Client Error. https://secret.example/hf_abcdefgh"

    assert "secret" not in words_of(log)
    assert "hf_" not in words_of(log)


def test_a_log_of_this_machine_says_more_and_ends_with_its_own_error_where_nothing_is_known() -> None:
    assert why_it_ended(["OSError: [Errno 98] Address already in use"]) == "its port was taken by another program"
    assert why_it_ended(["INFO starting", NO_CACHE]).startswith("the model leaves no GPU memory for requests")
    assert why_it_ended(["Traceback", "app.errors.OddError: so it is"]) == "OddError: so it is"
    assert why_it_ended(["INFO starting"]) == "its log does not say why"


def test_load_is_read_from_vllms_metrics() -> None:
    text = (
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 2.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 7.0\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.91\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="m"} NaN\n'
    )

    cached = (
        'vllm:prefix_cache_queries_total{engine="0"} 140.0\nvllm:prefix_cache_queries_total{engine="1"} 60.0\n'
        'vllm:prefix_cache_hits_total{engine="0"} 50.0\nvllm:prefix_cache_queries_created{engine="0"} 1.7e+09\n'
    )

    assert load_in(text) == Load(5, 7, 0.91)
    assert load_in(text + cached) == Load(5, 7, 0.91, 200, 50)


def test_the_room_of_a_cache_is_read_where_one_engine_tells_it() -> None:
    busy = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
    told = 'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="2097152",num_gpu_blocks="16384"} 1.0\n'

    assert load_in(busy + told) == Load(1, 0, 0.0, cache_tokens=2_097_152)
    assert load_in(busy + told.replace('"2097152"', '"None"')) == Load(1, 0, 0.0)
    assert load_in(busy + told + told.replace("2097152", "1")) == Load(1, 0, 0.0), "several engines say nothing"
    assert load_in("process_cpu_seconds_total 1.0\n") is None
    assert address_of("http://127.0.0.1:8000/v1") == "http://127.0.0.1:8000/metrics"
