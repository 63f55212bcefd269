#!/bin/sh
# The tour of `make demo`: a folder of images becomes a mount, and every step
# says what to expect. Needs no network and no root. Usage: demo.sh BINARY
set -eu

bin=$1
need() { # COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || { echo "demo: $1 is missing; install it first: apt-get install $2 (or your system's package of that name)" >&2; exit 1; }
}
need mksquashfs squashfs-tools
need getfattr attr
[ -e /dev/fuse ] || { echo "demo: there is no /dev/fuse; load the module: modprobe fuse" >&2; exit 1; }
if [ "$(id -u)" != 0 ]; then
	need fusermount3 fuse3
	need squashfuse squashfuse
	[ -w /dev/fuse ] || { echo "demo: this user may not open /dev/fuse; an administrator can: chmod 666 /dev/fuse" >&2; exit 1; }
fi

work=$(mktemp -d)
mnt=$work/mnt
img=$work/inside
mounted= inner=
leave() {
	status=$?
	[ -z "$inner" ] || umount "$img" 2>/dev/null || fusermount3 -u "$img" 2>/dev/null || true
	[ -z "$mounted" ] || "$bin" umount "$mnt" || true
	rm -rf "$work"
	exit $status
}
trap leave EXIT
trap 'exit 130' INT TERM

step() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$(printf '%s ' "$@" | sed "s|$work|.|g; s|$bin|sregistry-fs|g")"; "$@"; }

step "A real image: a root file system with one static program, packed by mksquashfs"
mkdir -p "$work/root/.singularity.d" "$work/registry/vsoch" "$mnt" "$img" "$work/src"
cat >"$work/src/main.go" <<'GO'
package main

import "fmt"

func main() { fmt.Println("hello from inside the image") }
GO
(cd "$work/src" && CGO_ENABLED=0 GO111MODULE=off go build -o "$work/root/hello" main.go)
printf '{"maintainer":"vsoch","version":"1.0"}\n' >"$work/root/.singularity.d/labels.json"
printf '#!/bin/sh\nexec /hello\n' >"$work/root/.singularity.d/runscript"
chmod 755 "$work/root/.singularity.d/runscript"
mksquashfs "$work/root" "$work/registry/vsoch/hello-world:latest.simg" -noappend -quiet -no-progress

step "Mount the folder as a registry (it returns when the mount is ready)"
run "$bin" mount --daemon --cache-dir "$work/cache" "dir:$work/registry" "$mnt"
mounted=yes

step "List it: one directory a collection, one file an image"
run ls -l "$mnt/vsoch"

step "Run a program out of the image, without copying it anywhere (prints: hello from inside the image)"
if [ "$(id -u)" = 0 ]; then
	run mount -t squashfs -o loop,ro "$mnt/vsoch/hello-world:latest.simg" "$img"
else
	run squashfuse "$mnt/vsoch/hello-world:latest.simg" "$img"
fi
inner=yes
run "$img/hello"
if [ "$(id -u)" = 0 ]; then umount "$img"; else fusermount3 -u "$img"; fi
inner=

step "Copy an image in: that is a push (the folder has it when cp returns)"
run cp "$mnt/vsoch/hello-world:latest.simg" "$mnt/vsoch/my-tool:1.2.simg"
run ls "$work/registry/vsoch"

step "Its record: extended attributes"
run getfattr -d -m 'user.sregistry.(image|tag|size|digest|label|runscript)' "$mnt/vsoch/my-tool:1.2.simg" 2>/dev/null

step "Delete it: the folder no longer has it"
run rm "$mnt/vsoch/my-tool:1.2.simg"
run ls "$work/registry/vsoch"

step "Unmount"
run "$bin" umount "$mnt"
mounted=
printf '\ndemo: everything worked\n'
