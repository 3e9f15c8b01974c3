"""The metrics of the hardware, by the names that the sampler gives them.

In a run a name has `hw/<host>/` before it, but `cpu_percent` and `memory_percent` of rank 0's
host. A test reads every probe and compares the names.
"""

from __future__ import annotations

from typing import Final

from shared.metric import Metric, MetricList

_NVML: Final = "nvmlDeviceGet"
_IB: Final = "/sys/class/infiniband, RDMA too"

HOST: Final = MetricList(
    (
        Metric("cpu_percent", "%", "psutil.cpu_times, all cores"),
        Metric("cpu/<core>/percent", "%", "psutil.cpu_times, the first 512 cores"),
        Metric("cpu/frequency_hertz", "Hz", "psutil.cpu_freq, mean of the cores"),
        Metric("load/1m", "tasks", "the kernel's load average"),
        Metric("load/5m", "tasks", "the kernel's load average"),
        Metric("load/15m", "tasks", "the kernel's load average"),
        Metric("memory_percent", "%", "psutil.virtual_memory"),
        Metric("memory/total_bytes", "bytes", "psutil.virtual_memory"),
        Metric("memory/used_bytes", "bytes", "psutil.virtual_memory"),
        Metric("memory/available_bytes", "bytes", "psutil.virtual_memory"),
        Metric("memory/oom_kills_total", "processes", "/proc/vmstat, since the machine's start"),
        Metric("swap/total_bytes", "bytes", "psutil.swap_memory"),
        Metric("swap/used_bytes", "bytes", "psutil.swap_memory"),
        Metric(
            "pressure/<resource>_some_ratio", "share of time", "/proc/pressure: some task waits"
        ),
        Metric("pressure/<resource>_full_ratio", "share of time", "/proc/pressure: all tasks wait"),
        Metric("disk/read_bytes_per_second", "bytes/s", "psutil.disk_io_counters, whole disks"),
        Metric("disk/write_bytes_per_second", "bytes/s", "psutil.disk_io_counters, whole disks"),
        Metric("disk/<device>/read_bytes_per_second", "bytes/s", "psutil.disk_io_counters"),
        Metric("disk/<device>/write_bytes_per_second", "bytes/s", "psutil.disk_io_counters"),
        Metric("disk/<device>/busy_ratio", "share of time", "psutil.disk_io_counters"),
        Metric("network/received_bytes_per_second", "bytes/s", "psutil.net_io_counters"),
        Metric("network/sent_bytes_per_second", "bytes/s", "psutil.net_io_counters"),
        Metric("network/<device>/received_bytes_per_second", "bytes/s", "psutil.net_io_counters"),
        Metric("network/<device>/sent_bytes_per_second", "bytes/s", "psutil.net_io_counters"),
        Metric("infiniband/<device>/<port>/received_bytes_per_second", "bytes/s", _IB),
        Metric("infiniband/<device>/<port>/sent_bytes_per_second", "bytes/s", _IB),
        Metric("infiniband/<device>/<port>/symbol_errors_total", "errors", _IB),
        Metric("infiniband/<device>/<port>/receive_errors_total", "errors", _IB),
        Metric("infiniband/<device>/<port>/send_discards_total", "packets", _IB),
        Metric("infiniband/<device>/<port>/link_downs_total", "times", _IB),
        Metric("cgroup/memory_limit_bytes", "bytes", "the tightest limit, cgroup 1 or 2"),
        Metric(
            "cgroup/memory_used_bytes", "bytes", "the same group, or else our own; without cache"
        ),
        Metric("cgroup/cpu_limit_cores", "cores", "the tightest quota, cgroup 1 or 2"),
        Metric("cgroup/cpu_used_cores", "cores", "the same group, or else our own"),
        Metric("cgroup/cpu_throttled_seconds_per_second", "s/s", "the same group"),
        Metric("cgroup/oom_kills_total", "processes", "memory.events, or memory.oom_control"),
        Metric("clock/suspended_seconds_total", "s", "CLOCK_BOOTTIME - CLOCK_MONOTONIC"),
        Metric("clock/wall_steps_total", "steps of 0.5 s or more", "wall clock - CLOCK_BOOTTIME"),
    )
)

_TREE: Final = "/proc/<pid>, a rank and its descendants"
PROCESSES: Final = MetricList(
    (
        Metric("process/<run>/<source>/processes", "processes", _TREE),
        Metric("process/<run>/<source>/threads", "threads", _TREE),
        Metric("process/<run>/<source>/cpu_cores", "cores", _TREE),
        Metric(
            "process/<run>/<source>/rss_bytes", "bytes", f"{_TREE}; shared pages count each time"
        ),
        Metric("process/<run>/<source>/open_files", "descriptors", _TREE),
        Metric("process/<run>/<source>/read_bytes_per_second", "bytes/s", _TREE),
        Metric("process/<run>/<source>/write_bytes_per_second", "bytes/s", _TREE),
    )
)

_GPM: Final = "GPM since the last sample; Hopper and later"
_THROTTLE: Final = f"{_NVML}CurrentClocksEventReasons"
_PCIE: Final = "NVML fields 197 and 198; before driver 565 nvmlDeviceGetPcieThroughput, in turns"
_NVLINK: Final = "NVML fields 138 and 139, all links"
_ROWS: Final = f"{_NVML}RemappedRows"
_ECC: Final = f"{_NVML}TotalEccErrors, since the driver's start"
_GPM_NAMES: Final = (
    "sm_active",
    "sm_occupancy",
    "tensor_active",
    "memory_bandwidth",
    "fp64_active",
    "fp32_active",
    "fp16_active",
    "integer_active",
)
GPUS: Final = MetricList(
    (
        Metric("gpu/<i>/uuid", "text", f"{_NVML}UUID"),
        Metric("gpu/<i>/utilization_percent", "%", f"{_NVML}UtilizationRates; not with MIG"),
        Metric("gpu/<i>/memory_used_bytes", "bytes", f"{_NVML}MemoryInfo_v2"),
        Metric("gpu/<i>/memory_total_bytes", "bytes", f"{_NVML}MemoryInfo_v2"),
        Metric("gpu/<i>/memory_percent", "%", f"{_NVML}MemoryInfo_v2"),
        Metric("gpu/<i>/temperature_celsius", "°C", f"{_NVML}Temperature"),
        Metric("gpu/<i>/power_watts", "W", f"{_NVML}PowerUsage"),
        Metric("gpu/<i>/power_limit_watts", "W", f"{_NVML}EnforcedPowerLimit"),
        Metric("gpu/<i>/energy_joules", "J", f"{_NVML}TotalEnergyConsumption: driver's start"),
        Metric("gpu/<i>/energy_since_start_joules", "J", "the same since the sampler's start"),
        Metric("gpu/<i>/clock_sm_hertz", "Hz", f"{_NVML}ClockInfo"),
        Metric("gpu/<i>/clock_memory_hertz", "Hz", f"{_NVML}ClockInfo"),
        Metric("gpu/<i>/throttle_reasons", "bits", _THROTTLE),
        Metric("gpu/<i>/throttle_names", "text", f"{_THROTTLE}, by name"),
        Metric("gpu/<i>/throttle/<reason>", "true or false", _THROTTLE),
        Metric("gpu/<i>/ecc_uncorrected_total", "errors", _ECC),
        Metric("gpu/<i>/ecc_corrected_total", "errors", _ECC),
        Metric("gpu/<i>/remapped_rows_corrected_total", "rows", _ROWS),
        Metric("gpu/<i>/remapped_rows_uncorrected_total", "rows", _ROWS),
        Metric("gpu/<i>/remapped_rows_pending", "true or false", f"{_ROWS}: a reset is needed"),
        Metric("gpu/<i>/remapped_rows_failed", "true or false", _ROWS),
        Metric("gpu/<i>/pcie_rx_bytes_per_second", "bytes/s", _PCIE),
        Metric("gpu/<i>/pcie_tx_bytes_per_second", "bytes/s", _PCIE),
        Metric("gpu/<i>/nvlink_rx_bytes_per_second", "bytes/s", _NVLINK),
        Metric("gpu/<i>/nvlink_tx_bytes_per_second", "bytes/s", _NVLINK),
        *(Metric(f"gpu/<i>/{name}_percent", "%", _GPM) for name in _GPM_NAMES),
        Metric("gpu/<i>/compute_processes", "processes", f"{_NVML}ComputeRunningProcesses"),
        Metric(
            "gpu/<i>/process/<run>/<source>/memory_used_bytes",
            "bytes",
            f"{_NVML}ComputeRunningProcesses, where pids are the machine's own",
        ),
        Metric("gpu/<i>/mig/<n>/uuid", "text", "MIG instance, numbered as in nvidia-smi -L"),
        Metric("gpu/<i>/mig/<n>/memory_used_bytes", "bytes", f"{_NVML}MemoryInfo_v2"),
        Metric("gpu/<i>/mig/<n>/memory_total_bytes", "bytes", f"{_NVML}MemoryInfo_v2"),
        Metric("gpu/<i>/mig/<n>/memory_percent", "%", f"{_NVML}MemoryInfo_v2"),
        *(Metric(f"gpu/<i>/mig/<n>/{name}_percent", "%", _GPM) for name in _GPM_NAMES),
    )
)

SAMPLER: Final = MetricList(
    (
        Metric("sampler/skipped_ticks_total", "samples", "ticks that came too late"),
        Metric("sampler/probe/<name>_seconds", "s", "time that a probe took for its last reading"),
    )
)

ALL: Final = MetricList((*HOST.metrics, *PROCESSES.metrics, *GPUS.metrics, *SAMPLER.metrics))
