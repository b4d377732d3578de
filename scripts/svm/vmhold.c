/* Keeps one idle VM with one vCPU alive. Without it KVM patches the kernel's
 * code whenever the first VM comes and the last one goes, which is what makes
 * creating a VM slow under emulation. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);

    ioctl(vm, KVM_CREATE_VCPU, 0);
    for (;;)
        pause();
}
