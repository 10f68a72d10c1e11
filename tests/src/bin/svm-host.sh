#!/bin/sh
# The first process of the emulated host: loads KVM, runs the kernels of ours and then
# Debian's, first without run-ahead, then with it. Its lines begin with "svm-host: ".
export PATH=/domus:/bin:/sbin HOME=/ DOMUS_RUN_DIR=/run/domus
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
ifconfig lo 127.0.0.1 up
dmesg -n 1

say() { echo "svm-host: $(cut -d ' ' -f 1 /proc/uptime) s: $*"; }

# Waits until a domain has gone.
gone() {
    for _ in $(seq 300); do
        xm list "$1" >/dev/null 2>&1 || return 0
        sleep 1
    done
    say "$1 is still there"
    xm destroy "$1"
}

# run NAME VCPUS [ARGUMENTS]: a kernel of ours.
run() {
    {
        echo "name = '$1'"
        echo "kernel = '/kernels/$1'"
        echo "memory = 32"
        echo "vcpus = $2"
        echo "extra = '$3'"
    } >/tmp/domain.cfg
    xm create /tmp/domain.cfg >/tmp/said 2>&1 || say "$(cat /tmp/said)"
    gone "$1"
    xm dmesg >/tmp/dmesg
    if grep -qE "DOMUS-TEST: SUCCESS $1 |$1: goodbye" /tmp/dmesg; then
        say "$(grep -E "DOMUS-TEST: SUCCESS $1 |$1: goodbye" /tmp/dmesg | tail -n 1)"
    else
        say "$1 failed"
        grep -v '  ok: ' /tmp/dmesg | tail -n 40
    fi
}

debian() {
    {
        echo "name = 'debian'"
        echo "kernel = '/kernels/vmlinuz'"
        echo "ramdisk = '/kernels/initrd'"
        echo "memory = 256"
        echo "extra = 'console=hvc0'"
    } >/tmp/domain.cfg
    xm create /tmp/domain.cfg >/tmp/said 2>&1 || say "$(cat /tmp/said)"
    log=$DOMUS_RUN_DIR/log/console/debian.log
    for _ in $(seq 600); do
        grep -q "$1" "$log" && break
        sleep 1
    done
    say "Debian: $(grep -o "$1" "$log")"
    xm shutdown -w debian >/dev/null
    gone debian
    say "$(grep -o 'vCPU ends.*' "$DOMUS_RUN_DIR/log/domus-hypervisor.log" | tail -n 1)"
}

load kvm-amd || say "no module kvm-amd"
say "nested paging: $(cat /sys/module/kvm_amd/parameters/npt)"
for ahead in off on; do
    export DOMUS_RUN_AHEAD=$ahead DOMUS_ENGINE=kvm
    say "run-ahead $ahead"
    run hello 1
    say "$(head -n 1 /tmp/dmesg)"
    for kernel in events user-mode paging-attacks wild-pointers; do
        run $kernel 1
    done
    run ping-pong 2
    run bad-cases 2 defined-only
    debian "$READY"
    xm stop-services >/dev/null
done
say "over"
poweroff -f
