"""The script that the guest runs as its only process."""

INIT = """\
#!/bin/busybox sh
# The only process of the guest: says that it is up, then waits for the power button.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
$B mount -t tmpfs tmp /tmp
while read -r module; do
    $B insmod "/modules/$module"
done < /modules/order

# muster.token=WORD on the kernel's command line tells one guest's log from another's.
token=-
for word in $($B cat /proc/cmdline); do
    case $word in muster.token=*) token=${word#muster.token=} ;; esac
done

# A power button that was pressed sends 24 bytes; a reboot asked of the hypervisor does the same,
# and it then resets the machine that switched itself off. Opened before the guest says that it is
# up: what is pressed from then on is kept.
for event in /sys/class/input/event*; do
    [ "$($B cat "$event/device/name" 2>/dev/null)" = "Power Button" ] || continue
    exec 3< "/dev/input/${event##*/}"
    (
        $B dd of=/dev/null bs=24 count=1 <&3 2>/dev/null
        echo "MUSTER GUEST DOWN $token" > /dev/ttyS0
        $B poweroff -f
    ) &
done

echo "MUSTER GUEST UP $token" > /dev/ttyS0
while :; do $B sleep 3600; done
"""
