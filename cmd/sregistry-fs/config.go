package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
)

// Config is every setting that a flag gives. A backend's own settings are
// its options.
type Config struct {
	Verbose bool
	Quiet   bool

	Backend string            // mount spec of the registry to use
	Options map[string]string // --option: the backend's settings

	CacheDir  string
	CacheSize int64 // bytes; 0: no bound
	ListTTL   time.Duration

	StopTimeout time.Duration
	UID         int
	GID         int
	FileMode    os.FileMode // 0: by what the registry can do
	DirMode     os.FileMode
	ReadOnly    bool
	AllowOther  bool
	AllowRoot   bool
	AnyFile     bool
	Daemon      bool
	LogFile     string
	FuseDebug   bool
}

const (
	defaultCacheSize   = "20 GiB"
	defaultListTTL     = 5 * time.Minute
	defaultStopTimeout = time.Minute
	// freeFloor is the space that the cache leaves on its file system.
	freeFloor = 1 << 30
)

// registryFlags choose the registry and the cache; every command that talks to
// a registry has them.
func (c *Config) registryFlags(flags *pflag.FlagSet, backend bool, optionLetter string) {
	if backend {
		flags.StringVarP(&c.Backend, "backend", "b", "", "the registry, as `SPEC`: BACKEND[:LOCATION]")
		withEnv(flags, "backend")
	}
	flags.VarP(&optionsValue{&c.Options}, "option", optionLetter, "a setting of the backend, as `name=value`; may be repeated (see sregistry-fs backends)")
	c.cacheDirFlag(flags)
	c.CacheSize = mustSize(defaultCacheSize)
	flags.Var((*sizeValue)(&c.CacheSize), "cache-size", "most `BYTES` to keep, as 500M or 20GiB; 0: no bound")
	flags.DurationVar(&c.ListTTL, "list-ttl", defaultListTTL, "`AGE` up to which a listing is used without asking the registry")
	withEnv(flags, "cache-size", "list-ttl")
}

func (c *Config) cacheDirFlag(flags *pflag.FlagSet) {
	flags.StringVar(&c.CacheDir, "cache-dir", "", "where images and listings are kept, a `DIR` (default ~/.cache/sregistry-fs, root: /var/cache/sregistry-fs)")
	withEnv(flags, "cache-dir")
}

// mountFlags are the flags of mount alone.
func (c *Config) mountFlags(flags *pflag.FlagSet) {
	flags.DurationVar(&c.StopTimeout, "stop-timeout", defaultStopTimeout, "`TIME` that files being written have to finish at unmount")
	flags.IntVar(&c.UID, "uid", os.Geteuid(), "owner of every file, a `UID` (default you)")
	flags.IntVar(&c.GID, "gid", os.Getegid(), "group of every file, a `GID` (default yours)")
	for _, name := range []string{"uid", "gid"} {
		flags.Lookup(name).DefValue = "0" // keep who runs it out of the help text
	}
	flags.Var((*modeValue)(&c.FileMode), "file-mode", "permissions of images, `MODE` in octal (default 0644, read-only 0444)")
	flags.Var((*modeValue)(&c.DirMode), "dir-mode", "permissions of directories, `MODE` in octal (default 0755, read-only 0555)")
	flags.BoolVar(&c.ReadOnly, "read-only", false, "refuse every change")
	flags.BoolVar(&c.AllowOther, "allow-other", false, "let other users in; the kernel checks permissions")
	flags.BoolVar(&c.AllowRoot, "allow-root", false, "let root in")
	flags.BoolVar(&c.AnyFile, "any-file", false, "push files that are no image, too")
	flags.BoolVar(&c.Daemon, "daemon", false, "return when the mount is ready and go on in the background")
	flags.StringVar(&c.LogFile, "log-file", "", "append the log to `FILE` (default stderr, with --daemon sregistry-fs.log in the cache)")
	flags.BoolVar(&c.FuseDebug, "fuse-debug", false, "log every kernel request, with names and attribute values")
	withEnv(flags, "stop-timeout", "uid", "gid", "file-mode", "dir-mode", "read-only", "allow-other", "allow-root", "any-file", "log-file")
}

// check finds what the flags' own types cannot.
func (c *Config) check() error {
	switch {
	case c.Verbose && c.Quiet:
		return usagef("", "--verbose and --quiet contradict each other")
	case c.AllowOther && c.AllowRoot:
		return usagef("--allow-other lets root in too", "--allow-other and --allow-root exclude each other")
	case c.ListTTL < 0:
		return usagef("", "--list-ttl is negative")
	case c.StopTimeout < 0:
		return usagef("", "--stop-timeout is negative")
	case c.UID < 0 || c.GID < 0 || int64(c.UID) > 1<<32-2 || int64(c.GID) > 1<<32-2:
		return usagef("", "--uid and --gid are numbers from 0 to %d", int64(1<<32-2))
	}
	return nil
}

// sizeValue is a flag in bytes: 500M, 20GiB, 1e9. Units are powers of 1024
// except where the user writes MB, GB, ….
type sizeValue int64

func (v *sizeValue) String() string { return humanize.IBytes(uint64(*v)) }
func (v *sizeValue) Type() string   { return "bytes" }
func (v *sizeValue) Set(s string) error {
	n, err := parseSize(s)
	if err == nil {
		*v = sizeValue(n)
	}
	return err
}

func parseSize(s string) (int64, error) {
	text := strings.TrimSpace(s)
	if text == "" {
		return 0, errors.New("no number")
	}
	if last := text[len(text)-1]; strings.ContainsRune("kKmMgGtTpP", rune(last)) {
		text += "iB"
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<62 {
		return 0, fmt.Errorf("%q is no size; write 500M, 20GiB or a number of bytes", s)
	}
	return int64(n), nil
}

func mustSize(s string) int64 {
	n, err := parseSize(s)
	if err != nil {
		panic(err)
	}
	return n
}

// modeValue is a flag of permission bits in octal.
type modeValue os.FileMode

func (v *modeValue) Type() string { return "mode" }
func (v *modeValue) String() string {
	if *v == 0 {
		return ""
	}
	return fmt.Sprintf("%04o", uint32(*v))
}

func (v *modeValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return fmt.Errorf("%q is no mode; write 0644", s)
	}
	*v = modeValue(n)
	return nil
}

// optionsValue collects name=value.
type optionsValue struct{ m *map[string]string }

func (v *optionsValue) Type() string   { return "name=value" }
func (v *optionsValue) String() string { return "" }
func (v *optionsValue) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not name=value", name) // without what may be a credential
	}
	if *v.m == nil {
		*v.m = map[string]string{}
	}
	(*v.m)[name] = value
	return nil
}
