/*
 * Stands in for NVIDIA's libnvidia-ml.so.1 in tests: two processors, of which the second has neither fan nor ECC.
 *
 * It obeys the file `control` beside itself, read anew at each call, one command a line:
 *     init <code>         nvmlInit fails with this code
 *     hang                nvmlDeviceGetUtilizationRates does not return while this line is there
 *     lost <gpu>          the processor has fallen off the bus
 *     refuse <gpu>        the processor may not be used
 *     throttle <gpu> <n>  the reasons for which its clocks are held down
 *     busy <gpu> <n>      its utilisation in percent
 *     quiet <gpu>         none of its processes has worked
 *     mig <gpu>           it is divided into two instances, numbered 0 and 2
 *     xid <gpu> <n>       it reported an error; each such line is told once
 * and writes a line into `calls` beside itself for each start, end, processor that is opened, and question to one
 * that is lost.
 *
 * The layouts are those of NVIDIA's nvml.h for the versioned functions that nvml-wrapper 0.13 calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    LOST = 15,
};

struct device {
    int gpu;
    int instance; /* -1 for the whole processor */
};

static struct device gpus[2] = {{0, -1}, {1, -1}};
static struct device parts[2][3] = {{{0, 0}, {0, 1}, {0, 2}}, {{1, 0}, {1, 1}, {1, 2}}};
static const char *addresses[2] = {"0000:01:00.0", "0000:41:00.0"};

static void beside(char *path, size_t size, const char *name)
{
    Dl_info info;
    dladdr(gpus, &info);
    const char *end = strrchr(info.dli_fname, '/');
    snprintf(path, size, "%.*s/%s", (int)(end - info.dli_fname), info.dli_fname, name);
}

static void tell(const char *what, const char *which)
{
    char path[4096];
    beside(path, sizeof path, "calls");
    FILE *file = fopen(path, "a");
    fprintf(file, "%s%s%s\n", what, *which ? " " : "", which);
    fclose(file);
}

/* Whether there is a command about a processor (-1: about none), after `skip` others of that name; its value goes to `value`. */
static int command(const char *name, int gpu, int skip, unsigned long long *value)
{
    char path[4096], line[256], word[64];
    int found = 0;
    beside(path, sizeof path, "control");
    FILE *file = fopen(path, "r");
    while (file && !found && fgets(line, sizeof line, file)) {
        unsigned long long first = 0, second = 0;
        int count = sscanf(line, "%63s %llu %llu", word, &first, &second);
        if (count < 1 || strcmp(word, name) != 0 || (gpu >= 0 && (count < 2 || first != (unsigned)gpu)))
            continue;
        found = skip-- == 0;
        if (value)
            *value = gpu >= 0 ? second : first;
    }
    if (file)
        fclose(file);
    return found;
}

static int lost(struct device *device)
{
    if (!command("lost", device->gpu, 0, 0))
        return 0;
    tell("asked", addresses[device->gpu]);
    return 1;
}

static int whole(struct device *device)
{
    if (lost(device))
        return LOST;
    return device->instance < 0 ? SUCCESS : NOT_SUPPORTED;
}

/* For what only the first processor has. */
static int first(struct device *device)
{
    int code = whole(device);
    return code == SUCCESS && device->gpu != 0 ? NOT_SUPPORTED : code;
}

static int put(int code, unsigned *out, unsigned value)
{
    if (code == SUCCESS)
        *out = value;
    return code;
}

int nvmlInit_v2(void)
{
    unsigned long long code = SUCCESS;
    command("init", -1, 0, &code);
    tell(code == SUCCESS ? "init" : "init failed", "");
    return (int)code;
}

int nvmlShutdown(void)
{
    tell("shutdown", "");
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    snprintf(version, length, "570.0");
    return SUCCESS;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *address, struct device **device)
{
    tell("open", address);
    for (int gpu = 0; gpu < 2; gpu++) {
        if (strcmp(address, addresses[gpu]) == 0) {
            *device = &gpus[gpu];
            return command("lost", gpu, 0, 0) ? LOST : command("refuse", gpu, 0, 0) ? NO_PERMISSION : SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length)
{
    if (lost(device))
        return LOST;
    if (device->instance < 0)
        snprintf(uuid, length, "GPU-%d", device->gpu);
    else
        snprintf(uuid, length, "MIG-%d-%d", device->gpu, device->instance);
    return SUCCESS;
}

int nvmlDeviceGetName(struct device *device, char *name, unsigned length)
{
    snprintf(name, length, device->gpu == 0 ? "NVIDIA Stub" : "NVIDIA Stub Mini");
    return whole(device);
}

int nvmlDeviceGetIndex(struct device *device, unsigned *index)
{
    return put(whole(device), index, device->gpu);
}

struct utilization {
    unsigned gpu, memory;
};

int nvmlDeviceGetUtilizationRates(struct device *device, struct utilization *rates)
{
    while (command("hang", -1, 0, 0))
        usleep(1000);
    unsigned long long busy = 0;
    command("busy", device->gpu, 0, &busy);
    *rates = (struct utilization){(unsigned)busy, (unsigned)busy / 2};
    return whole(device);
}

struct memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory *memory)
{
    if (memory->version != (sizeof *memory | 2 << 24))
        return INVALID_ARGUMENT;
    if (lost(device))
        return LOST;
    memory->total = device->instance < 0 ? 16000 : 4000;
    memory->reserved = 0;
    memory->used = device->instance < 0 ? 4000 : 100;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned *celsius)
{
    return put(sensor == 0 ? whole(device) : INVALID_ARGUMENT, celsius, 61);
}

int nvmlDeviceGetPowerUsage(struct device *device, unsigned *milliwatts)
{
    return put(whole(device), milliwatts, 71500);
}

int nvmlDeviceGetEnforcedPowerLimit(struct device *device, unsigned *milliwatts)
{
    return put(first(device), milliwatts, 300000);
}

int nvmlDeviceGetTotalEnergyConsumption(struct device *device, unsigned long long *millijoules)
{
    *millijoules = 1234500;
    return first(device);
}

int nvmlDeviceGetClockInfo(struct device *device, unsigned kind, unsigned *megahertz)
{
    return put(whole(device), megahertz, 1000 + kind);
}

int nvmlDeviceGetNumFans(struct device *device, unsigned *count)
{
    return put(first(device), count, 2);
}

int nvmlDeviceGetFanSpeed_v2(struct device *device, unsigned fan, unsigned *percent)
{
    return put(first(device), percent, 30 + fan);
}

struct fan_speed {
    unsigned version, fan, speed;
};

int nvmlDeviceGetFanSpeedRPM(struct device *device, struct fan_speed *fan)
{
    fan->speed = 1500 + fan->fan;
    return first(device);
}

int nvmlDeviceGetEncoderUtilization(struct device *device, unsigned *percent, unsigned *period)
{
    *period = 100000;
    return put(first(device), percent, 0);
}

int nvmlDeviceGetDecoderUtilization(struct device *device, unsigned *percent, unsigned *period)
{
    return nvmlDeviceGetEncoderUtilization(device, percent, period);
}

int nvmlDeviceGetPcieThroughput(struct device *device, int counter, unsigned *kilobytes)
{
    return put(first(device), kilobytes, counter == 0 ? 7 : 9);
}

int nvmlDeviceGetCurrPcieLinkGeneration(struct device *device, unsigned *generation)
{
    return put(whole(device), generation, 4);
}

int nvmlDeviceGetCurrPcieLinkWidth(struct device *device, unsigned *width)
{
    return put(whole(device), width, 16);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, unsigned long long *reasons)
{
    *reasons = 0;
    command("throttle", device->gpu, 0, reasons);
    return whole(device);
}

int nvmlDeviceGetTotalEccErrors(struct device *device, int uncorrected, int aggregate, unsigned long long *count)
{
    *count = 10 * aggregate + uncorrected;
    return first(device);
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending)
{
    *pending = 0;
    return put(first(device), current, command("mig", device->gpu, 0, 0));
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *count)
{
    return put(whole(device), count, 3);
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **part)
{
    *part = &parts[device->gpu][index];
    return index == 1 ? NOT_FOUND : whole(device);
}

struct process {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
};

static int processes(unsigned *count, struct process *out, const struct process *in, unsigned length)
{
    unsigned room = *count;
    *count = length;
    if (room < length)
        return INSUFFICIENT_SIZE;
    memcpy(out, in, length * sizeof *in);
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned *count, struct process *out)
{
    static const struct process all[] = {{100, 3000, ~0u, ~0u}, {200, ~0ull, ~0u, ~0u}};
    if (lost(device))
        return LOST;
    return processes(count, out, all, device->gpu == 0 ? (device->instance < 0 ? 2 : 1) : 0);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *device, unsigned *count, struct process *out)
{
    static const struct process all[] = {{100, 3000, ~0u, ~0u}, {300, 50, ~0u, ~0u}};
    int code = whole(device);
    return code != SUCCESS ? code : processes(count, out, all, device->gpu == 0 ? 2 : 0);
}

struct sample {
    unsigned pid;
    unsigned long long time;
    unsigned sm, memory, encoder, decoder;
};

int nvmlDeviceGetProcessUtilization(struct device *device, struct sample *out, unsigned *count, unsigned long long since)
{
    int code = command("quiet", device->gpu, 0, 0) ? NOT_FOUND : whole(device);
    if (code != SUCCESS)
        return code;
    unsigned room = *count;
    *count = 1;
    if (!out || room < 1)
        return INSUFFICIENT_SIZE;
    out[0] = (struct sample){100, since + 1, 80, 20, 0, 0};
    return SUCCESS;
}

struct set {
    int gpu;
};

/* As many sets as a test makes; how many errors were told outlives them, as a driver tells none twice. */
static struct set sets[64];
static int sets_made;
static int told[2];

int nvmlEventSetCreate(struct set **set)
{
    *set = &sets[sets_made++ % 64];
    (*set)->gpu = -1;
    return SUCCESS;
}

int nvmlEventSetFree(struct set *set)
{
    set->gpu = -1;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(struct device *device, unsigned long long types, struct set *set)
{
    set->gpu = device->gpu;
    return types == 8 ? SUCCESS : NOT_SUPPORTED;
}

struct event {
    struct device *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

int nvmlEventSetWait_v2(struct set *set, struct event *event, unsigned timeout_ms)
{
    unsigned long long xid;
    (void)timeout_ms;
    if (set->gpu < 0 || !command("xid", set->gpu, told[set->gpu], &xid))
        return TIMEOUT;
    told[set->gpu]++;
    *event = (struct event){&gpus[set->gpu], 8, xid, ~0u, ~0u};
    return SUCCESS;
}
