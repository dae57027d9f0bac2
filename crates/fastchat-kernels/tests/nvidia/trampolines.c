/* Calls one function of each library, fills one entry of the table, calls through it. */
#include <stdio.h>
#include <string.h>

int cuInit(unsigned flags);
int cuDeviceGetCount(int *count);
int cublasLtCreate(void **handle);
int cublasCreate_v2(void **handle);
int curandCreateGenerator(void **generator, int kind);

struct function {
    const char *name;
    void **slot;
    unsigned long library;
};
extern struct function fastchat_nvidia_functions[], fastchat_nvidia_functions_end[];

static int found(int *count) {
    *count = 42;
    return 7;
}

int main(void) {
    int functions = 0, count = 0;
    printf("%d %d %d %d ", cuInit(0), cublasLtCreate(0), cublasCreate_v2(0), curandCreateGenerator(0, 0));
    for (struct function *f = fastchat_nvidia_functions; f < fastchat_nvidia_functions_end; f++, functions++)
        if (!strcmp(f->name, "cuDeviceGetCount"))
            *f->slot = (void *)found;
    int status = cuDeviceGetCount(&count);
    printf("%d %d %d\n", functions, status, count);
    return 0;
}
