// What the image nonewprivs of Kubernetes' end-to-end tests runs: setuid root, it says whether that had an effect.
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %u\n", geteuid());
    return 0;
}
