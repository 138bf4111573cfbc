"""How the programs of tests are compiled."""

from jaxlib.version import __version_info__

# Most of a test is compilation. XLA's emitter of fusions through MLIR takes four times the time of its predecessor on
# the small programs of tests. XLA ends the process at a flag that it does not know: other versions do without.
FEWER_PASSES = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if __version_info__[:2] == (0, 10)
    else ""
)
