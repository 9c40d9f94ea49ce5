"""Settings: their flags, sizes and addresses."""

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from loramux.cli.app import app
from loramux_server.commands.flags import parse_size, show_size, takes_config
from loramux_server.commands.headings import HEADINGS, METAVARS
from loramux_server.commands.serve import run
from loramux_server.config import ConfigError, ServerConfig, make_config, split_address
from loramux_server.served_names import named
from loramux_server.wire.engine_config import EngineConfig
from tests.server.test_limits import MODEL


def from_flags(*arguments: str) -> ServerConfig:
    """What `loramux serve` would serve with."""
    given: list[dict[str, object]] = []
    only = typer.Typer()
    only.command()(takes_config(ServerConfig, HEADINGS, METAVARS)(given.append))
    result = CliRunner().invoke(only, arguments)
    assert result.exit_code == 0, result.output
    return make_config(given[0])


def test_flags_have_the_defaults_of_the_config() -> None:
    assert from_flags("--model", "tiny") == ServerConfig(model="tiny")


def test_every_field_has_a_flag() -> None:
    config = ServerConfig(
        model="a", revision="l", dtype="float16", device="cuda:1", kernels="torch", threads=3,
        max_context=99,
        max_running=5, max_batch_tokens=6, max_stall=0.75, max_waiting=7, block_size=8,
        speculative_tokens=24,
        kv_memory=9 << 20, adapter_memory=3 << 30, host_adapter_memory=5 << 10, max_bypassed=11,
        adapters="b", store="c", listen="[::1]:1", metrics="host:2", ready_file="d", max_upload=12,
        upload_idle_timeout=0.5, default_timeout=13.0, drain_timeout=0.0, prefix_cache=False,
        quantization="int8", adapter_dtype="float16", tensor_parallel=2,
        adapters_interval=7.5, upload_expiry=14.0, min_upload_rate=15, max_tenant_bytes=16,
        max_tenant_adapters=17, eviction="cost",
        max_tenant_share=0.5, hub_allow=("e/*", "f/g"), object_allow=("s3://h",),
        oci_allow=("i/*",), replica_of="j:1", replica_key="k", replica_ca="l",
        replica_cert="o", replica_cert_key="p",
        tls_cert="e", tls_key="f", tls_client_ca="g",
        tls_client_domain="h.i", insecure=True, access="m", trusted_signer=("n",),
        resolve=("/o/{name}",), resolve_ttl=27.0, catalog="sqlite://",
        adapter_templates=False, deterministic=True, enforce_eager=True,
        log_format="json", audit_log="j", tracing_endpoint="http://k:1",
        watchdog=15.0, quarantine_deaths=3, probe_interval=16.0,
        max_waiting_tokens=18, max_waiting_bytes=19, max_lag=0.25, reader_timeout=20.0,
        keepalive=21.0, max_connection_age=22.0, stream_interval=23,
        max_images=24, max_image_bytes=25, max_image_pixels=26,
        max_completions=27, strict_base=True, generation_config="n", served_model_name=("o", "p"),
    )  # fmt: skip
    values = msgspec.structs.asdict(config)
    assert all(value != getattr(ServerConfig(model=""), name) for name, value in values.items())
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        switch = {True: [f"--{flag}"], False: [f"--no-{flag}"]}
        for one in value if isinstance(value, tuple) else [value]:
            flags += switch[one] if isinstance(one, bool) else [f"--{flag}", str(one)]
    assert from_flags(*flags) == config


def test_every_flag_is_below_one_heading_of_the_help() -> None:
    names = [name for below in HEADINGS.values() for name in below]
    assert sorted(names) == sorted(ServerConfig.__struct_fields__)
    help_lines = CliRunner().invoke(app, ["serve", "--help"]).output.splitlines()
    headings = [line for line in help_lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [f"{heading}:" for heading in (*HEADINGS, "Other")]
    assert METAVARS.keys() <= set(names)
    assert not any(line.split()[1:2] == ["TEXT"] for line in help_lines), "see METAVARS"
    below = help_lines[help_lines.index("Memory:") :]
    assert below[1].split()[:2] == ["--kv-memory", "SIZE|auto"]


@pytest.mark.parametrize(
    "flag",
    ["max-running", "max-batch-tokens", "threads", "kv-memory", "adapter-memory",
     "host-adapter-memory"],
)  # fmt: skip
def test_what_is_left_open_is_called_auto(flag: str) -> None:
    field = flag.replace("-", "_")
    assert getattr(ServerConfig(model=""), field) == 0
    assert getattr(from_flags("--model", "a", f"--{flag}", "auto"), field) == 0
    assert getattr(from_flags("--model", "a", f"--{flag}", "7"), field) == 7
    shown = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    about = shown[shown.index(f"--{flag} ") :]
    assert about[about.index("[default:") :].startswith("[default: auto]")
    refused = CliRunner().invoke(app, ["serve", "--model", "a", f"--{flag}", "otto"])
    assert refused.exit_code == 2 and f"'--{flag}'" in refused.output and "otto" in refused.output


def test_the_engine_gets_its_part() -> None:
    config = ServerConfig(model="a", block_size=8, listen="host:1")
    assert config.engine == EngineConfig(model="a", block_size=8)


def test_every_field_is_described() -> None:
    schema = msgspec.json.schema(ServerConfig)["$defs"]["ServerConfig"]["properties"]
    for name, about in schema.items():
        text = about.get("description") or about["anyOf"][0].get("description", "")
        assert text.endswith("."), name


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("max_running", -1, "--max-running is -1; expected `int` >= 0"),
        ("kv_memory", -1, "--kv-memory is -1; expected `int` >= 0"),
        ("adapter_memory", -1, "--adapter-memory is -1; expected `int` >= 0"),
        ("dtype", "int4", "--dtype is 'int4'; expected `str` matching"),
        ("kernels", "", "--kernels is ''"),
        (
            "max_image_pixels",
            1 << 28,
            "--max-image-pixels is 268435456; expected `int` <= 178956970",
        ),
        ("hub_allow", ["a", 1], "--hub-allow is ['a', 1]; expected `str`, got `int`"),
        ("default_timeout", 0.0, "--default-timeout is 0.0; expected `float` > 0"),
        ("default_timeout", float("nan"), "--default-timeout is nan"),
        ("drain_timeout", -1.0, "--drain-timeout is -1.0"),
        ("listen", "", "--listen is '', not HOST:PORT"),
        ("metrics", "host:http", "--metrics is 'host:http', not HOST:PORT"),
        ("tracing_endpoint", "h:4317", "--tracing-endpoint is 'h:4317'; expected a URL"),
        ("tracing_endpoint", "https:///v1", "--tracing-endpoint is 'https:///v1'"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(
    setting: str, value: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model": "tiny", setting: value}
    with pytest.raises(ConfigError) as caught:
        make_config(settings)
    assert says in str(caught.value)
    assert run(settings) == 78
    assert capsys.readouterr().err == f"loramux: {caught.value}\n"


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("[::1]", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address("listen", address) == parts


@pytest.mark.parametrize(
    "address",
    ["", ":", ":80", "host", "host:", "host:-1", "host:65536", "host:8 0", "host:\u0664x"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--listen"):
        split_address("listen", address)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("123", 123), ("1K", 1 << 10), ("1k", 1 << 10), ("2KiB", 2 << 10),
        ("2 MB", 2 << 20), ("1.5G", 3 << 29), ("4T", 4 << 40), (" 7B ", 7),
    ],
)  # fmt: skip
def test_a_size_has_a_unit_or_none(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1e3", "1P", "1 2", "0x10", "1,5G", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_a_size_is_shown_as_it_is_read(size: int) -> None:
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize(("model", "names", "wanted"), [
    ("meta-llama/Llama-3.1-8B", (), ["last", "meta-llama/Llama-3.1-8B"]),
    ("meta-llama/Llama-3.1-8B", ("a", "b/c"), ["a", "b/c"]),
    ("./llama", (), ["last"]),
    ("/srv/llama", (), ["last"]),
    ("gpt2", (), ["last"]),
])  # fmt: skip
def test_a_base_has_its_hub_id_where_no_other_name_is_given(
    model: str, names: tuple[str, ...], wanted: list[str]
) -> None:
    config = ServerConfig(model=model, served_model_name=names)
    assert named(msgspec.structs.replace(MODEL, name="last"), config).names == wanted


@pytest.mark.parametrize("names", [("",), (" a",), ("a\n",), ("a" * 257,), ("a", "a")])
def test_a_name_that_cannot_be_had_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--served-model-name .* expected"):
        make_config({"model": "a", "served_model_name": names})
