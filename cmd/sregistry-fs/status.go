package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
	"github.com/sregistry/sregistry-fs/fs"
)

func (a *app) refreshCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "refresh PATH",
		Short: "Ask the registry now what a mounted directory holds",
		Long: `Ask the registry now what a mounted directory holds, instead of waiting for
--list-ttl. The mountpoint stands for everything. Only who mounted it can ask.

` + exitCodes,
		Example: `  sregistry-fs refresh /mnt/images/vsoch`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, path, err := mountUnder("refresh", args[0])
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(m.point, path)
			if err != nil {
				return err
			}
			query := url.Values{"path": {strings.TrimPrefix(rel, ".")}}
			return noControl("refresh", m, ask(cmd.Context(), socketDirs(a.getenv, os.Geteuid()), m.point, http.MethodPost, "/refresh", query, nil))
		},
	}
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [PATH]",
		Short: "Show the mounts of sregistry-fs, or what one is doing",
		Long: `Show the mounts of sregistry-fs on this machine, or what the one that PATH lies in
is doing. Only who mounted it can ask that.

` + exitCodes,
		Example: `  sregistry-fs status
  sregistry-fs status /mnt/images`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listMounts()
			}
			m, _, err := mountUnder("status", args[0])
			if err != nil {
				return err
			}
			var st status
			if err := noControl("status", m, ask(cmd.Context(), socketDirs(a.getenv, os.Geteuid()), m.point, http.MethodGet, "/status", nil, &st)); err != nil {
				return err
			}
			limit := "no bound"
			if st.CacheLimit > 0 {
				limit = humanize.IBytes(uint64(st.CacheLimit))
			}
			fmt.Fprintf(a.stdout, "%s on %s\nprocess %d, version %s, since %s\n%d open files\ncache %s: %s of %s\nstaged: %d (%s)\n",
				st.Spec, st.Mountpoint, st.PID, st.Version, st.Since.Format("2006-01-02 15:04:05"), st.OpenFiles,
				st.CacheDir, humanize.IBytes(uint64(st.CacheUsed)), limit, st.Staged, humanize.IBytes(uint64(st.StagedBytes)))
			return nil
		},
	}
}

func (a *app) listMounts() error {
	out := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, m := range mounts() {
		if m.fsType == fuseType {
			fmt.Fprintf(out, "%s\t%s\n", m.point, m.source)
		}
	}
	return out.Flush()
}

// mountUnder finds our mount that path lies in.
func mountUnder(op, text string) (mountEntry, string, error) {
	path, ok := underMount(text)
	if !ok {
		return mountEntry{}, "", backends.Errorf(op, backends.Ref{}, backends.NotFound, "%s is not below a mount of sregistry-fs", text)
	}
	m, _ := mountOf(path)
	return m, path, nil
}

func noControl(op string, m mountEntry, err error) error {
	if errors.Is(err, errNoControl) {
		return &backends.Error{
			Op: op, Kind: backends.Unavailable, Err: fmt.Errorf("no daemon answers for %s", m.point),
			Hint: "only the user who mounted it can ask; if its daemon is dead: sregistry-fs umount --force " + m.point,
		}
	}
	return err
}

// status describes a running mount.
func (a *app) status(s *session, mounted *fs.Mounted, point string) status {
	st := status{
		PID: os.Getpid(), Version: version, Spec: s.source(), Mountpoint: point, CacheDir: s.cache.Dir(),
		Since: s.since, OpenFiles: mounted.OpenHandles(),
	}
	st.CacheUsed, st.CacheLimit = s.cache.Store.Usage()
	staged, err := s.cache.Stage.List()
	if err != nil {
		s.log.Warn("the stage cannot be listed", "error", err)
	}
	for _, e := range staged {
		if e.Registry == s.identity {
			st.Staged++
			st.StagedBytes += e.Size
		}
	}
	return st
}

func (a *app) stagedCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "staged",
		Short: "List the images that no registry has acknowledged yet",
		Long: `List the files in the stage: what is being written, and images whose push failed
or was cut short. Each line names the file that holds the bytes; push it with
sregistry-fs push FILE IMAGE.

` + exitCodes,
		Example: `  sregistry-fs staged`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			log := a.logger(a.stderr, 0)
			dir, err := a.cacheDir(log)
			if err != nil {
				return err
			}
			stage, err := cache.NewStage(cache.StageOptions{Dir: dir, Log: log, Now: a.now})
			if err != nil {
				return err
			}
			defer stage.Close()
			all, err := stage.List()
			if err != nil {
				return err
			}
			out := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			for _, e := range all {
				name := e.Name
				if e.Ref.Image != "" {
					name = e.Ref.String()
				}
				state := fmt.Sprint(e.State)
				if e.Live {
					state += ", in use"
				}
				fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\n", humanize.IBytes(uint64(e.Size)), state, name, e.Path, e.Reason)
			}
			return out.Flush()
		},
	}
	a.cfg.cacheDirFlag(cmd.Flags())
	return cmd
}
