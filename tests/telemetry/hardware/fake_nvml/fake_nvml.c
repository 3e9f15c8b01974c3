/* A libnvidia-ml.so.1 without a GPU: it answers from a scenario, a file of `key=value` lines.
 *
 * FAKE_NVML_SCENARIO names the file. It is read again whenever it was replaced, so that a test
 * changes the machine under a running sampler. FAKE_NVML_CALLS names a file to which each call
 * is appended, as `function gpu`. A key holds for one GPU (`gpu.3.power_mw`) or, without its
 * prefix, for all. Keys beside the readings:
 *
 *     gpus=8                    number of GPUs
 *     error.FUNCTION=15         error that a function answers with; also gpu.0.error.FUNCTION
 *     hang.FUNCTION=1           the function does not return while the scenario says so
 *     lost=1                    NVML_ERROR_GPU_IS_LOST from everything
 *     mig=3                     MIG is on, with three instances
 *     gpm=1                     GPM is there, as on Hopper
 *     xid=79                    gpu.0.xid: an XID event, delivered once for each new value
 *     processes=12:1024 13:2048 pid:bytes of each compute process
 *
 * Compiled with -DOLD_DRIVER it lacks the functions that came after driver 470.
 */
#include "scenario.h"

#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define TIMEOUT 10
#define GPUS_MAX 16
#define INSTANCES_MAX 7

typedef unsigned long long ull;
typedef struct { int gpu, instance; } Device; /* instance -1: the whole GPU */
typedef struct { double at; } Sample;

static Device devices[GPUS_MAX][INSTANCES_MAX + 1];
static double began;
static long long xid_seen[GPUS_MAX];

#define ENTER(gpu) do { int code = enter(__func__, gpu); if (code) return code; } while (0)
#define ON_WHOLE_GPU(d) do { ENTER((d)->gpu); if ((d)->instance >= 0) return NOT_SUPPORTED; } while (0)
/* A reading of one unsigned number, from a key of the scenario. */
#define READING(function, type, key, otherwise) \
    int function(Device *d, type *value) { \
        ON_WHOLE_GPU(d); \
        *value = (type)number(d->gpu, key, otherwise); \
        return SUCCESS; \
    }

int nvmlInitWithFlags(uint flags) {
    (void)flags;
    is_ready = 1;
    int code = enter(__func__, -1);
    if (!began) began = now();
    if (code) is_ready = 0;
    for (int gpu = 0; gpu < GPUS_MAX; gpu++)
        for (int i = 0; i <= INSTANCES_MAX; i++) devices[gpu][i] = (Device){gpu, i - 1};
    return code;
}

int nvmlShutdown(void) { ENTER(-1); is_ready = 0; return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, uint length) {
    ENTER(-1);
    const char *found = text(-1, "driver");
    snprintf(version, length, "%s", found ? found : "580.95.05");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(uint *count) { ENTER(-1); *count = (uint)number(-1, "gpus", 1); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(uint index, Device **device) {
    ENTER((int)index);
    *device = &devices[index][0];
    return SUCCESS;
}

int nvmlDeviceGetUUID(Device *d, char *uuid, uint length) {
    ENTER(d->gpu);
    const char *found = text(d->gpu, "uuid");
    if (d->instance >= 0)
        snprintf(uuid, length, "MIG-%04d%04d-0000-0000-0000-000000000000", d->gpu, d->instance);
    else if (found)
        snprintf(uuid, length, "%s", found);
    else
        snprintf(uuid, length, "GPU-%08d-0000-0000-0000-000000000000", d->gpu);
    return SUCCESS;
}

READING(nvmlDeviceGetPowerUsage, uint, "power_mw", 300000)
READING(nvmlDeviceGetEnforcedPowerLimit, uint, "power_limit_mw", 700000)
READING(nvmlDeviceGetCurrentClocksThrottleReasons, ull, "throttle", 0)
READING(nvmlDeviceGetMaxMigDeviceCount, uint, "mig_max", INSTANCES_MAX)

int nvmlDeviceGetUtilizationRates(Device *d, uint *rates) {
    ON_WHOLE_GPU(d);
    if (number(d->gpu, "mig", 0)) return NOT_SUPPORTED;
    rates[0] = (uint)number(d->gpu, "utilization", 87);
    rates[1] = (uint)number(d->gpu, "memory_utilization", 40);
    return SUCCESS;
}

static int memory(Device *d, ull *total, ull *reserved, ull *used) {
    ull parts = d->instance < 0 ? 1 : 8;
    *total = (ull)number(d->gpu, "memory_total", 80.0 * (1 << 30)) / parts;
    *reserved = d->instance < 0 ? 600 << 20 : 0;
    *used = (ull)number(d->gpu, "memory_used", 20.0 * (1 << 30)) / parts;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device *d, ull *info) { /* total, free, used with the reserved part */
    ENTER(d->gpu);
    ull reserved;
    memory(d, &info[0], &reserved, &info[2]);
    info[2] += reserved;
    info[1] = info[0] - info[2];
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *d, int sensor, uint *celsius) {
    (void)sensor;
    ON_WHOLE_GPU(d);
    *celsius = (uint)number(d->gpu, "temperature", 61);
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device *d, int kind, uint *mhz) {
    ON_WHOLE_GPU(d);
    *mhz = (uint)(kind == 1 ? number(d->gpu, "sm_mhz", 1980) : number(d->gpu, "memory_mhz", 2619));
    return SUCCESS;
}

/* From a counter of its own, or as much as the power makes since the start. */
int nvmlDeviceGetTotalEnergyConsumption(Device *d, ull *millijoules) {
    ON_WHOLE_GPU(d);
    double made = number(d->gpu, "power_mw", 300000) * (now() - began);
    *millijoules = (ull)number(d->gpu, "energy_mj", 5000000 + made);
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(Device *d, int kind, int since, ull *count) {
    (void)since;
    ON_WHOLE_GPU(d);
    *count = (ull)number(d->gpu, kind == 1 ? "ecc_uncorrected" : "ecc_corrected", 0);
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(Device *d, uint *cor, uint *unc, uint *pending, uint *failed) {
    ON_WHOLE_GPU(d);
    *cor = (uint)number(d->gpu, "rows_corrected", 0);
    *unc = (uint)number(d->gpu, "rows_uncorrected", 0);
    *pending = (uint)number(d->gpu, "rows_pending", 0);
    *failed = (uint)number(d->gpu, "rows_failed", 0);
    return SUCCESS;
}

int nvmlDeviceGetPcieThroughput(Device *d, int direction, uint *kilobytes) {
    ON_WHOLE_GPU(d);
    *kilobytes = direction ? 5000 : 2000;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, uint *count, char *infos) {
    ENTER(d->gpu);
    struct { uint pid; ull used; uint gpu_instance, compute_instance; } info = {0};
    const char *found = text(d->gpu, "processes");
    uint have = 0;
    for (const char *at = found; at && *at; at = strchr(at, ' '), have++) {
        while (*at == ' ') at++;
        if (sscanf(at, "%u:%llu", &info.pid, &info.used) != 2) break;
        if (have < *count) memcpy(infos + have * sizeof info, &info, sizeof info);
    }
    int code = have > *count ? INSUFFICIENT_SIZE : SUCCESS;
    *count = have;
    return code;
}

int nvmlEventSetCreate(void **set) { ENTER(-1); *set = devices; return SUCCESS; }
int nvmlEventSetFree(void *set) { (void)set; ENTER(-1); return SUCCESS; }

int nvmlDeviceRegisterEvents(Device *d, ull types, void *set) {
    (void)types; (void)set;
    ON_WHOLE_GPU(d);
    return SUCCESS;
}

typedef struct { Device *device; ull type, data; uint gpu_instance, compute_instance; } EventData;

int nvmlEventSetWait_v2(void *set, EventData *data, uint timeout_ms) {
    (void)set;
    ENTER(-1);
    for (int gpu = 0; gpu < (int)number(-1, "gpus", 1); gpu++) {
        long long xid = (long long)number(gpu, "xid", 0);
        if (xid == xid_seen[gpu]) continue;
        xid_seen[gpu] = xid;
        if (!xid) continue;
        *data = (EventData){&devices[gpu][0], 8, (ull)xid, ~0u, ~0u};
        return SUCCESS;
    }
    if (timeout_ms) usleep(timeout_ms * 1000);
    return TIMEOUT;
}

int nvmlDeviceGetMigMode(Device *d, uint *current, uint *pending) {
    ON_WHOLE_GPU(d);
    *current = *pending = number(d->gpu, "mig", 0) > 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, uint index, Device **instance) {
    ON_WHOLE_GPU(d);
    if (index >= (uint)number(d->gpu, "mig", 0)) return NOT_FOUND;
    *instance = &devices[d->gpu][index + 1];
    return SUCCESS;
}

/* Not the index: on a GPU the ids of instances begin where the first one was placed. */
int nvmlDeviceGetGpuInstanceId(Device *d, uint *id) { ENTER(d->gpu); *id = (uint)d->instance + 7; return SUCCESS; }

#ifndef OLD_DRIVER
READING(nvmlDeviceGetCurrentClocksEventReasons, ull, "throttle", 0)

int nvmlDeviceGetMemoryInfo_v2(Device *d, char *info) {
    struct { uint version; ull total, reserved, free, used; } *found = (void *)info;
    ENTER(d->gpu);
    memory(d, &found->total, &found->reserved, &found->used);
    found->free = found->total - found->reserved - found->used;
    return SUCCESS;
}

typedef struct {
    uint field, scope;
    long long timestamp, latency;
    uint type, code;
    ull value;
} FieldValue;

static ull counted(int gpu, const char *key, double rate) {
    return (ull)(number(gpu, key, rate) * (now() - began));
}

int nvmlDeviceGetFieldValues(Device *d, int count, FieldValue *values) {
    ON_WHOLE_GPU(d);
    for (int i = 0; i < count; i++) {
        FieldValue *v = &values[i];
        v->code = SUCCESS;
        v->type = 3; /* unsigned long long */
        switch (v->field) {
        case 138: v->value = counted(d->gpu, "nvlink_tx_kib_per_s", 2e6); break;
        case 139: v->value = counted(d->gpu, "nvlink_rx_kib_per_s", 1e6); break;
        case 197: v->value = counted(d->gpu, "pcie_tx_bytes_per_s", 2e9); break;
        case 198: v->value = counted(d->gpu, "pcie_rx_bytes_per_s", 5e9); break;
        default: v->code = NOT_SUPPORTED;
        }
        if ((v->field == 138 || v->field == 139) && (v->scope != ~0u || !number(d->gpu, "nvlink", 1)))
            v->code = NOT_SUPPORTED;
    }
    return SUCCESS;
}

int nvmlGpmQueryDeviceSupport(Device *d, uint *support) {
    ENTER(d->gpu);
    support[1] = (uint)number(d->gpu, "gpm", 0);
    return SUCCESS;
}

int nvmlGpmSampleAlloc(Sample **sample) { ENTER(-1); *sample = calloc(1, sizeof **sample); return SUCCESS; }
int nvmlGpmSampleFree(Sample *sample) { ENTER(-1); free(sample); return SUCCESS; }

int nvmlGpmSampleGet(Device *d, Sample *sample) { ON_WHOLE_GPU(d); sample->at = now(); return SUCCESS; }

int nvmlGpmMigSampleGet(Device *d, uint gpu_instance, Sample *sample) {
    ON_WHOLE_GPU(d);
    if (gpu_instance < 7) return NOT_FOUND;
    sample->at = now();
    return SUCCESS;
}

typedef struct { uint id, code; double value; void *info[3]; } GpmMetric;
typedef struct { uint version, count; Sample *first, *second; GpmMetric metrics[1]; } GpmMetrics;

/* Each metric reads as its own number: SM_UTIL (2) is 2 %. */
int nvmlGpmMetricsGet(GpmMetrics *asked) {
    ENTER(-1);
    if (!asked->first->at || asked->second->at <= asked->first->at) return 2;
    for (uint i = 0; i < asked->count; i++) {
        asked->metrics[i].code = SUCCESS;
        asked->metrics[i].value = asked->metrics[i].id;
    }
    return SUCCESS;
}
#endif
