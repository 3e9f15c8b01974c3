/* The scenario: keys and values from the file that FAKE_NVML_SCENARIO names. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define GPU_IS_LOST 15
#define LINES_MAX 512

static char lines[LINES_MAX][160];
static int line_count, is_ready;
static ino_t inode;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Tests replace the file by a rename, so a new inode means a new scenario. */
static void load(void) {
    const char *path = getenv("FAKE_NVML_SCENARIO");
    struct stat found;
    if (!path || stat(path, &found) || found.st_ino == inode) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    inode = found.st_ino;
    line_count = 0;
    while (line_count < LINES_MAX && fgets(lines[line_count], sizeof lines[0], file)) {
        lines[line_count][strcspn(lines[line_count], "\n")] = 0;
        line_count++;
    }
    fclose(file);
}

static const char *find(const char *key) {
    size_t length = strlen(key);
    for (int i = 0; i < line_count; i++)
        if (!strncmp(lines[i], key, length) && lines[i][length] == '=') return lines[i] + length + 1;
    return NULL;
}

static const char *text(int gpu, const char *key) {
    char own[120];
    snprintf(own, sizeof own, "gpu.%d.%s", gpu, key);
    const char *found = gpu < 0 ? NULL : find(own);
    return found ? found : find(key);
}

static double number(int gpu, const char *key, double otherwise) {
    const char *found = text(gpu, key);
    return found ? strtod(found, NULL) : otherwise;
}

static void note_call(const char *function, int gpu) {
    static int fd = -2;
    if (fd == -2) {
        const char *path = getenv("FAKE_NVML_CALLS");
        fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    }
    if (fd < 0) return;
    char line[120];
    int length = snprintf(line, sizeof line, "%s %d\n", function, gpu);
    if (write(fd, line, length) != length) abort();
}

/* The part that all functions share: what the scenario does to a call. */
static int enter(const char *function, int gpu) {
    char key[100];
    load();
    note_call(function, gpu);
    snprintf(key, sizeof key, "hang.%s", function);
    while (number(gpu, key, 0)) {
        usleep(5000);
        load();
    }
    if (!is_ready) return UNINITIALIZED;
    if (gpu >= 0 && number(gpu, "lost", 0)) return GPU_IS_LOST;
    snprintf(key, sizeof key, "error.%s", function);
    return (int)number(gpu, key, SUCCESS);
}
