"""Eight CPU devices for every test, no silent broadcasting of ranks, and a browser."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time

import jax
import pytest

jax.config.update("jax_platforms", "cpu")  # else libtpu, where installed, is locked
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """With ENSJAX_TESTS_BEGIN=N the files begin with the N-th, so that all have turns.

    See `.ci/run`, where the slow tests have the time that is left.
    """
    if "ENSJAX_TESTS_BEGIN" in os.environ and items:
        files = list(dict.fromkeys(item.path for item in items))
        first = int(os.environ["ENSJAX_TESTS_BEGIN"]) % len(files)
        place = {path: (i - first) % len(files) for i, path in enumerate(files)}
        items.sort(key=lambda item: place[item.path])


def pytest_runtest_setup(item):
    """Skips what would begin after ENSJAX_TESTS_END, in seconds since the epoch."""
    if time.time() > float(os.environ.get("ENSJAX_TESTS_END", "inf")):
        pytest.skip("no time left for it in this run")


# What these modules look at is what the compiler makes of a program, in full.
LOOKS_AT_PROGRAMS = re.compile(
    r"as_text|memory_analysis|cost_analysis|collectives|log_compiles"
)
FEW_OPTIMIZATIONS = "jax_disable_most_optimizations"
# The compiler takes half the time without its emitters of fused loops (it has no others
# from JAX 0.11 on), and less with the whole of a program in one piece. XLA_FLAGS say so
# for a process; JAX has no public word for some modules of one, which is why these
# versions alone are asked through a private one.
QUICK = (
    {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    if jax.__version_info__[:2] == (0, 10)
    else {}
)


def _compile_quickly(patch):
    jax.config.update(FEW_OPTIMIZATIONS, True)
    if not QUICK:
        return
    from jax._src import compiler

    options_of_jax = compiler.get_compile_options

    def get_compile_options(*args, **kwargs):
        options = options_of_jax(*args, **kwargs)
        if jax.config.read(FEW_OPTIMIZATIONS):
            options.env_option_overrides += list(QUICK.items())
        return options

    patch.setattr(compiler, "get_compile_options", get_compile_options)


def _compile_quickly_in_children(patch):
    patch.setenv(FEW_OPTIMIZATIONS.upper(), "1")
    flags = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
    patch.setenv("XLA_FLAGS", " ".join([os.environ.get("XLA_FLAGS", ""), *flags]))


def _compile_in_full_what_is_lowered(patch):
    """`lower(...).compile()`, which is how one looks at a program."""
    compile_lowered = jax.stages.Lowered.compile

    def compile(lowered, compiler_options=None, **kwargs):
        # An option of its own, XLA's usual level: else it may be the program of a call.
        options = {"xla_backend_optimization_level": 3, **(compiler_options or {})}
        jax.config.update(FEW_OPTIMIZATIONS, False)
        try:
            return compile_lowered(lowered, options, **kwargs)
        finally:
            jax.config.update(FEW_OPTIMIZATIONS, True)

    patch.setattr(jax.stages.Lowered, "compile", compile)


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs(request):
    """Programs of tests are compiled with few optimizations, which takes less time.

    Not with ENSJAX_TESTS_OPTIMIZED=1 (as in most parts of `.ci/run`, the slow tests
    among them), nor what a module looks at as a program. Compiled programs map memory,
    and all tests together run out of mappings: each module forgets its own.
    """
    in_full = (
        "ENSJAX_TESTS_OPTIMIZED" in os.environ
        or request.path.name == "test_parity.py"  # guards against the compiler itself
    )
    with pytest.MonkeyPatch.context() as patch:
        if not in_full:
            _compile_quickly(patch)
            if LOOKS_AT_PROGRAMS.search(request.path.read_text()):
                _compile_in_full_what_is_lowered(patch)
            else:
                _compile_quickly_in_children(patch)
        yield
    jax.config.update(FEW_OPTIMIZATIONS, False)
    jax.clear_caches()


@pytest.fixture
def in_tpu_process(request):
    """Runs the test's own file as a script where a TPU compiler can be found.

    `in_tpu_process(*arguments)` returns the JSON that it prints last.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'ensjax[tpu-plan]'")

    def run(*arguments):
        environment = {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
        result = subprocess.run(
            [sys.executable, request.path, *map(str, arguments)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    flags += " disable-background-networking disable-component-update"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(executable_path=driver)
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


def _open(browser, path, width):
    """Shows the file at a width; returns the addresses that the page asked for."""
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=True)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(f"file://{path}")
    messages = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


@pytest.fixture
def open_in_browser(browser):
    """Opens a file at a width, checks that all is there; returns how many images.

    No message on the console, no request but for the file itself, every image loaded,
    and nothing sticks out sideways.
    """

    def check(page, width):
        asked = _open(browser, page, width)
        assert browser.get_log("browser") == []
        outside = [url for url in asked if not url.startswith("data:")]
        assert outside == [f"file://{page}"]
        widths = browser.execute_script(
            "return [...document.images].map(image => image.naturalWidth)"
        )
        assert min(widths) > 0
        shown = browser.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert shown[0] <= shown[1] == width
        return len(widths)

    return check


@pytest.fixture
def compilations():
    """Names of the programs that were compiled since the list was cleared.

    The size of a jit cache says less: an input whose sharding is written differently is
    another entry of it, of the same executable.
    """
    names = []

    def note(event, seconds, *, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)
