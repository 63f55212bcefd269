package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/fs"
)

func (a *app) mountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mount SPEC MOUNTPOINT",
		Short: "Show a registry as a directory",
		Long: `Show a registry as a directory, until it is unmounted or told to stop.

SPEC is BACKEND[:LOCATION]; sregistry-fs backends lists them. MOUNTPOINT is an empty
directory. One line says that the mount is ready. SIGTERM and SIGINT end it: nothing
new is opened, files being written have --stop-timeout to finish, what is left stays
staged; a second signal ends it at once.

Most flags can be set in the environment as SREGISTRY_FS_<FLAG>, as in
SREGISTRY_FS_CACHE_DIR; docs/config.md lists them.

` + exitCodes,
		Example: `  sregistry-fs mount registry:https://reg.example.org /mnt/images
  sregistry-fs mount --daemon --read-only dir:/data/images ~/images
  sregistry-fs mount --allow-other --cache-size 200GiB registry /mnt/images`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.isDaemonChild() {
				a.adoptPipe()
			} else if a.cfg.Daemon {
				return a.startDaemon(cmd.Context())
			}
			err := a.mount(cmd.Context(), args[0], args[1])
			if err != nil {
				a.tellParent(cmd.Context(), "", err)
			}
			return err
		},
	}
	a.cfg.registryFlags(cmd.Flags(), false, "o")
	a.cfg.mountFlags(cmd.Flags())
	return cmd
}

// mount serves the mount to its end.
func (a *app) mount(ctx context.Context, specText, mountpoint string) (err error) {
	if err := a.cfg.check(); err != nil {
		return err
	}
	s, err := a.parseSpec(specText)
	if err != nil {
		return err
	}
	log, closeLog, err := a.mountLog()
	if err != nil {
		return err
	}
	defer closeLog()
	dir, err := a.cacheDir(log)
	if err != nil {
		return err
	}
	apart := map[string]string{"the cache": dir}
	if strings.HasPrefix(s.driver.Location, "/") {
		apart["the images in"] = s.location
	}
	point, err := checkMountpoint(mountpoint, os.Geteuid(), apart, log)
	if err != nil {
		return err
	}
	log = log.With("mountpoint", point)
	settings, err := a.settings(log)
	if err != nil {
		return err
	}
	session, err := a.open(ctx, s, settings, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, session.close(ctx)) }()
	return a.serve(ctx, session, point, log)
}

// serve mounts, says so, and returns when the mount is gone.
func (a *app) serve(ctx context.Context, s *session, point string, log *slog.Logger) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if a.cfg.FuseDebug {
		log.Warn("--fuse-debug writes names and attribute values to the log")
	}
	life := context.WithoutCancel(ctx) // a signal unmounts; it does not break what is under way
	mounted, err := fs.Mount(life, point, s.cache, a.mountOptions(s, log))
	if err != nil {
		return err
	}
	stop := newStopper(life, mounted)
	defer stop.wait()
	ctl, err := listenControl(socketDirs(a.getenv, os.Geteuid()), point, controls{
		status: func() status { return a.status(s, mounted, point) },
		refresh: func(ctx context.Context, path string) error {
			return s.cache.Catalog.Refresh(ctx, collectionOf(path))
		},
		unmount: func(_ context.Context, force bool) error { return stop.now(force) },
	})
	if err != nil {
		log.Warn("refresh and status will not reach this mount", "error", err)
	} else {
		defer func() {
			ctx, cancel := context.WithTimeout(life, time.Second)
			defer cancel()
			ctl.close(ctx)
		}()
	}
	a.ready(ctx, s, point)
	// A signal ends ctx as well, so only what came here is counted.
	left := 2
	select {
	case <-mounted.Done():
		return nil // unmounted from outside
	case <-ctx.Done():
	case <-signals:
		left--
	}
	log.Info("unmounting; a second signal does not wait", "timeout", a.cfg.StopTimeout)
	go func() {
		for ; left > 0; left-- {
			select {
			case <-signals:
			case <-stop.gone:
				return
			}
		}
		if err := stop.now(true); err != nil {
			log.Warn("the mount was not taken down cleanly", "error", err)
		}
	}()
	err = stop.now(false)
	a.sayStaged(s, log)
	return err
}

func (a *app) mountOptions(s *session, log *slog.Logger) fs.Options {
	return fs.Options{
		Backend: s.spec.driver.Scheme, Source: s.source(),
		UID: uint32(a.cfg.UID), GID: uint32(a.cfg.GID), FileMode: a.cfg.FileMode, DirMode: a.cfg.DirMode,
		ReadOnly: a.cfg.ReadOnly, AllowOther: a.cfg.AllowOther, AllowRoot: a.cfg.AllowRoot, AnyFile: a.cfg.AnyFile,
		StopTimeout: a.cfg.StopTimeout, FuseDebug: a.cfg.FuseDebug, Log: log, Now: a.now,
	}
}

// source is what every user sees in the table of mounts: the spec without
// what could be a password in its address.
func (s *session) source() string {
	scheme, rest, ok := strings.Cut(s.spec.String(), "://")
	if !ok {
		return s.spec.String()
	}
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = authority[i+1:]
	}
	return strings.TrimSuffix(scheme+"://"+authority+"/"+path, "/")
}

// stopper takes a mount down once, whoever asks.
type stopper struct {
	mounted *fs.Mounted
	once    sync.Once
	patient context.Context // of the graceful unmount
	hurry   context.CancelFunc
	gone    chan struct{}
	err     error // read after gone is closed
}

// newStopper is for a mount whose operations run under ctx. wait releases it.
func newStopper(ctx context.Context, m *fs.Mounted) *stopper {
	s := &stopper{mounted: m, gone: make(chan struct{})}
	s.patient, s.hurry = context.WithCancel(ctx)
	return s
}

// now unmounts, gracefully unless force, and returns the outcome when the
// mount is gone. A forced call cuts a graceful one short.
func (s *stopper) now(force bool) error {
	if force {
		s.hurry()
		err := s.mounted.Force()
		s.wait()
		return err
	}
	s.once.Do(func() {
		go func() {
			defer close(s.gone)
			s.err = s.mounted.Unmount(s.patient)
		}()
	})
	<-s.gone
	if s.patient.Err() != nil {
		return nil // forced meanwhile, and that call has the outcome
	}
	return s.err
}

// wait returns when an unmount that has begun is over.
func (s *stopper) wait() {
	begun := true
	s.once.Do(func() { begun = false; close(s.gone) })
	if begun {
		<-s.gone
	}
	s.hurry()
}

// collectionOf gives the collection that a path below a mountpoint belongs
// to: the path itself, or its parent if it is an image's.
func collectionOf(path string) string {
	path = strings.Trim(filepath.Clean("/"+path), "/")
	base := filepath.Base(path)
	if strings.Contains(base, ":") || backends.TrimSuffix(base) != base {
		path = strings.TrimPrefix(filepath.Dir(path), ".")
	}
	return path
}

// ready says on one line that the mount can be used.
func (a *app) ready(ctx context.Context, s *session, point string) {
	what := s.source() + " on " + point
	if a.parent != nil {
		_ = os.Chdir("/") // so that the daemon keeps no other file system busy
		a.tellParent(ctx, what, nil)
	} else if !a.cfg.Quiet {
		fmt.Fprintf(a.stdout, "ready: %s\n", what)
	}
}

// sayStaged tells what of this registry is still waiting to be pushed.
func (a *app) sayStaged(s *session, log *slog.Logger) {
	all, err := s.cache.Stage.List()
	if err != nil {
		log.Warn("the stage cannot be listed", "error", err)
		return
	}
	for _, e := range all {
		if e.Registry == s.identity && e.Ref.Image != "" && !e.Live {
			log.Warn("not pushed, still staged", "image", e.Ref.String(), "file", e.Path, "reason", e.Reason)
		}
	}
}

// mountLog opens the log of a mount: the file that was asked for, the cache's
// own for a daemon, else stderr.
func (a *app) mountLog() (*slog.Logger, func(), error) {
	path := a.cfg.LogFile
	if path == "" && a.cfg.Daemon {
		dir, err := a.cacheDir(a.logger(a.stderr, slog.LevelWarn))
		if err != nil {
			return nil, nil, err
		}
		path = filepath.Join(dir, "sregistry-fs.log")
	}
	if path == "" {
		return a.logger(a.stderr, slog.LevelInfo), func() {}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, &backends.Error{Op: "log", Kind: backends.KindOf(err), Err: err}
	}
	if a.cfg.Daemon {
		// A daemon has no terminal: what a crash prints goes to its log too.
		if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
	}
	return a.logger(f, slog.LevelInfo), func() { _ = f.Close() }, nil
}
