"""The script that the guest runs as its only process, and how it reads its cloud-init seed."""

# Of a network-config in JSON, a value a line: MAC, what it is given (address or gateway), value.
CARDS_AWK = """\
BEGIN { FS = "\\"" }
/"macaddress"/ { mac = $4; servers = 0 }
/"nameservers"/ { servers = 1 }
/"addresses": \\[/ { list = !servers; next }
/\\]/ { list = 0 }
list { print mac, "address", $2 }
/"via"/ { print mac, "gateway", $4 }
"""

INIT = r"""#!/bin/busybox sh
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
# muster.write=vda has it write there for ever, and say whether it could.
token=- target=
for word in $($B cat /proc/cmdline); do
    case $word in
    muster.token=*) token=${word#muster.token=} ;;
    muster.write=*) target=${word#muster.write=} ;;
    esac
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

for disk in /sys/block/vd*; do
    [ -e "$disk" ] && echo "MUSTER GUEST DISK ${disk##*/} $(($($B cat "$disk/size") / 2048)) MiB" \
        > /dev/ttyS0
done

# A guest with a seed has a SCSI drive, which is found some moments after its driver is loaded.
if [ -n "$($B ls /sys/class/scsi_host)" ]; then
    for _ in $($B seq 50); do
        [ -e /dev/sr0 ] && break
        $B sleep 0.1
    done
    $B mount -t iso9660 -o ro /dev/sr0 /seed
fi
if [ -f /seed/meta-data ]; then
    name=$($B sed -n 's/.*"local-hostname": "\([^"]*\)".*/\1/p' /seed/meta-data)
    $B hostname "${name%%.*}"
    $B ip link set lo up
    $B awk -f /cards.awk /seed/network-config | while read -r mac what value; do
        for card in /sys/class/net/*; do
            [ "$($B cat "$card/address")" = "$mac" ] || continue
            dev=${card##*/}
            $B ip link set "$dev" up
            case $what in
            address) $B ip addr add "$value" dev "$dev" ;;
            gateway) $B ip route add default via "$value" dev "$dev" ;;
            esac
        done
    done
    echo "MUSTER GUEST NAME $($B hostname)" > /dev/ttyS0
    $B ip -o -4 addr show scope global |
        $B awk '{ print "MUSTER GUEST ADDRESS", $2, $4 }' > /dev/ttyS0
    echo "MUSTER GUEST KEYS $($B cat /seed/user-data /seed/vendor-data 2>/dev/null |
        $B grep -c '"ssh-')" > /dev/ttyS0
    # Something to reach, or not, through a security group.
    $B hostname > /www/index.html
    for port in 80 81; do
        $B httpd -p "$port" -h /www
    done
fi

echo "MUSTER GUEST UP $token" > /dev/ttyS0
n=0
while [ -n "$target" ]; do
    n=$((n + 1)) said=FAILED
    $B yes "$token was here" |
        $B dd of="/dev/$target" bs=64k count=4 iflag=fullblock conv=fsync 2>/dev/null && said=WROTE
    echo "MUSTER GUEST $said $n" > /dev/ttyS0
    $B sleep 0.1
done
while :; do $B sleep 3600; done
"""
