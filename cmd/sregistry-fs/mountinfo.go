package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// fuseType is how the kernel names our mounts.
const fuseType = "fuse.sregistry-fs"

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct {
	minor  int // of the device: the number of the FUSE connection
	point  string
	fsType string
	source string
}

// mounts lists the mounts of this process's namespace, in the order in which
// the kernel tells them: later ones cover earlier ones.
func mounts() []mountEntry {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var all []mountEntry
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if m, ok := parseMount(lines.Text()); ok {
			all = append(all, m)
		}
	}
	return all
}

// parseMount reads "36 35 0:45 / /mnt rw,relatime shared:1 - fuse.x source rw".
func parseMount(line string) (mountEntry, bool) {
	before, after, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(before), strings.Fields(after)
	if !ok || len(fields) < 6 || len(rest) < 1 {
		return mountEntry{}, false
	}
	_, minor, _ := strings.Cut(fields[2], ":")
	n, err := strconv.Atoi(minor)
	if err != nil {
		return mountEntry{}, false
	}
	m := mountEntry{minor: n, point: unescape(fields[4]), fsType: rest[0]}
	if len(rest) > 1 {
		m.source = unescape(rest[1])
	}
	return m, true
}

// unescape undoes the kernel's \040 for space, tab, newline and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt finds the topmost mount at exactly path.
func mountAt(path string) (mountEntry, bool) {
	all := mounts()
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].point == path {
			return all[i], true
		}
	}
	return mountEntry{}, false
}

// mountOf finds the mount that an absolute path lies in.
func mountOf(path string) (mountEntry, bool) {
	var best mountEntry
	found := false
	for _, m := range mounts() {
		if m.point == path || m.point == "/" || strings.HasPrefix(path, m.point+"/") {
			if !found || len(m.point) >= len(best.point) {
				best, found = m, true
			}
		}
	}
	return best, found
}

// underMount gives the absolute form of a path that lies in one of our
// mounts, without asking the mount unless a symbolic link leads there.
func underMount(text string) (string, bool) {
	path, err := filepath.Abs(text)
	if err != nil || text == "" {
		return "", false
	}
	if m, ok := mountOf(path); ok && m.fsType == fuseType {
		return path, true
	}
	path = realPath(path)
	m, ok := mountOf(path)
	return path, ok && m.fsType == fuseType
}
