package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

// sharedFileSystem names the file systems where locks, sparse files and memory maps are
// slow or unsafe between nodes, by statfs type; any other is "".
func sharedFileSystem(fsType int64) string {
	switch fsType {
	case 0x6969:
		return "NFS"
	case 0x0BD00BD0:
		return "Lustre"
	case 0x47504653:
		return "GPFS"
	case 0x19830326:
		return "BeeGFS"
	}
	return ""
}

// fileSystemOf gives the statfs type of path or of its nearest parent that exists.
func fileSystemOf(path string) int64 {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return int64(st.Type)
		}
		if path == "/" || path == "." || !errors.Is(err, unix.ENOENT) {
			return 0
		}
		path = filepath.Dir(path)
	}
}

// cacheDir settles and makes the cache directory: --cache-dir, else the
// user's cache, else, where that is on a file system that nodes share, a
// directory of this node.
func (a *app) cacheDir(log *slog.Logger) (string, error) {
	if a.cfg.CacheDir != "" {
		dir, err := filepath.Abs(a.cfg.CacheDir)
		if err != nil {
			return "", err
		}
		if name := sharedFileSystem(fileSystemOf(dir)); name != "" {
			log.Warn("the cache is on a shared file system, which is slow and wears its servers", "type", name, "dir", dir)
		}
		err = mayTake(dir)
		if err == nil {
			err = privateDir(dir, os.Stat)
		}
		return dir, cacheError(err)
	}
	uid := os.Geteuid()
	dir, err := defaultCacheDir(a.getenv, uid)
	if err == nil {
		name := sharedFileSystem(fileSystemOf(dir))
		if name == "" {
			return dir, cacheError(privateDir(dir, os.Stat))
		}
		log.Warn("the usual cache directory is on a shared file system, so a directory of this node is used", "type", name, "usual", dir)
	}
	return nodeDir([]string{"/var/tmp", "/tmp"}, uid, fileSystemOf)
}

// defaultCacheDir gives the usual place, or an error when there is no home.
func defaultCacheDir(getenv func(string) (string, bool), uid int) (string, error) {
	if uid == 0 { // whatever sudo kept of a user's environment
		return "/var/cache/sregistry-fs", nil
	}
	if base, ok := getenv("XDG_CACHE_HOME"); ok && filepath.IsAbs(base) {
		return filepath.Join(base, "sregistry-fs"), nil
	}
	if home, ok := getenv("HOME"); ok && filepath.IsAbs(home) {
		return filepath.Join(home, ".cache", "sregistry-fs"), nil
	}
	return "", errors.New("no home directory")
}

// nodeDir makes sregistry-fs-UID in the first of bases that is not shared.
func nodeDir(bases []string, uid int, fsType func(string) int64) (string, error) {
	var errs []error
	for _, base := range bases {
		if sharedFileSystem(fsType(base)) != "" {
			continue
		}
		dir := filepath.Join(base, fmt.Sprintf("sregistry-fs-%d", uid))
		err := privateDir(dir, os.Lstat)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	if errs == nil {
		errs = append(errs, errors.New("every usual place is on a shared file system"))
	}
	return "", cacheError(errors.Join(errs...))
}

func cacheError(err error) error {
	if err == nil {
		return nil
	}
	return &backends.Error{Op: "cache", Kind: backends.KindOf(err), Err: err, Hint: "choose another directory with --cache-dir"}
}

// privateDir makes dir with mode 0700, or checks that it is this user's
// directory. stat is os.Lstat where others could have planted a link.
func privateDir(dir string, stat func(string) (os.FileInfo, error)) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := stat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d: %w", dir, st.Uid, fs.ErrPermission)
	case info.Mode().Perm()&0o077 != 0:
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// mayTake refuses to close a directory that others can use and that holds
// anything but a cache: --cache-dir /tmp must not end /tmp for everybody.
func mayTake(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return nil // what else may be wrong shows when it is used
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	foreign := ""
	for _, e := range entries {
		switch e.Name() {
		case "blobs", "stage", "index":
			return nil
		case "lost+found":
		default:
			foreign = e.Name()
		}
	}
	if foreign == "" {
		return nil
	}
	return fmt.Errorf("%s is open to other users and is no cache (it holds %q)", dir, foreign)
}

// overlap reports whether one of two directories is inside the other or they
// are the same; links are followed as far as the paths exist.
func overlap(a, b string) bool {
	a, b = realPath(a), realPath(b)
	inside := func(x, y string) bool {
		rel, err := filepath.Rel(y, x)
		return err == nil && rel != ".." && !hasDotDot(rel)
	}
	return inside(a, b) || inside(b, a)
}

func hasDotDot(rel string) bool {
	return len(rel) > 2 && rel[:3] == "../"
}

func realPath(path string) string {
	path = filepath.Clean(path)
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(realPath(parent), filepath.Base(path))
	}
	return path
}
