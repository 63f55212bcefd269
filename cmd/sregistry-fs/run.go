package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/all"
	"github.com/sregistry/sregistry-fs/secrets"
)

// The exit codes, as every help text lists them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitUnavailable = 5
	exitInterrupted = 130
)

const exitCodes = `Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 denied (credentials,
frozen, read-only), 5 registry unavailable, busy or too slow, 130 interrupted.`

// app is one run of the program: where its input comes from and its output
// goes. Nothing below it reads the process's own.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) (string, bool)
	drivers        []backends.Driver
	now            func() time.Time
	args           []string
	cfg            Config
	parent         *os.File // in a daemon that is not ready yet: who waits for it
}

// run is the program: it returns the exit code. A context that ends stands for
// the first signal.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) (string, bool)) int {
	a := &app{
		stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv,
		drivers: all.Drivers(), now: time.Now, args: args,
	}
	root := a.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		a.complain(err)
	}
	return exitCode(ctx, err)
}

// usageError is a mistake on the command line: exit code 2.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(hint, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: hint}
}

// complain writes an error and its hint.
func (a *app) complain(err error) {
	fmt.Fprintf(a.stderr, "sregistry-fs: %s\n", err)
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", hint)
	}
}

func hintOf(err error) string {
	var usage *usageError
	if errors.As(err, &usage) && usage.hint != "" {
		return usage.hint
	}
	var file *secrets.FileError
	if errors.As(err, &file) && file.Hint != "" {
		return file.Hint
	}
	var daemon *daemonError
	if errors.As(err, &daemon) {
		return daemon.verdict.Hint
	}
	if hint := backends.HintOf(err); hint != "" {
		return hint
	}
	if after := backends.RetryAfter(err); after > 0 {
		return "try again in " + after.Round(time.Second).String()
	}
	return ""
}

// exitCode tells a script what sort of failure err is.
func exitCode(ctx context.Context, err error) int {
	var usage *usageError
	var daemon *daemonError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &daemon):
		return daemon.verdict.Code
	case errors.As(err, &usage):
		return exitUsage
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	switch backends.KindOf(err) {
	case backends.NotFound:
		return exitNotFound
	case backends.Denied, backends.Frozen, backends.ReadOnly:
		return exitDenied
	case backends.Unavailable, backends.Timeout, backends.Throttled:
		return exitUnavailable
	}
	return exitFailure
}

// command builds the tree of commands. The flags that every command takes are
// few; those of a command stand with it.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "sregistry-fs",
		Short: "Registries of Singularity and Apptainer images as directories",
		Long: `sregistry-fs shows a registry of Singularity and Apptainer images as a
directory: ls is search, cp is pull and push, getfattr shows the record, rm deletes,
and images run in place, fetching only what they touch.

IMAGE is CLIENT://[collection/]image[:tag][@version], a path under a mount, or
[collection/]image[:tag][@version] in the registry that --backend or
SREGISTRY_CLIENT names.

` + exitCodes,
		Example: `  sregistry-fs mount registry:https://reg.example.org /mnt/images
  sregistry-fs pull registry://vsoch/hello-world:latest
  sregistry-fs push my.sif registry://vsoch/my-tool:1.2`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, hint: flagHint(cmd, err)}
	})
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveDefault)
	root.PersistentFlags().BoolVarP(&a.cfg.Verbose, "verbose", "v", false, "log what happens, also each request")
	root.PersistentFlags().BoolVarP(&a.cfg.Quiet, "quiet", "q", false, "log errors only, show no progress")
	root.AddCommand(
		a.mountCommand(), a.umountCommand(), a.lsCommand(), a.pullCommand(), a.pushCommand(),
		a.recordCommand(), a.deleteCommand(), a.refreshCommand(), a.statusCommand(), a.stagedCommand(),
		a.backendsCommand(), a.versionCommand(),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(a.args...)
	for _, cmd := range root.Commands() {
		a.harden(cmd)
	}
	return root
}

// unknownCommand refuses what is no command of root's.
func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	hint := "see sregistry-fs --help"
	if near := nearest(args[0], names); near != "" {
		hint = "did you mean " + near + "?"
	}
	return usagef(hint, "there is no command %q", args[0])
}

// harden makes a command report what cobra finds wrong as wrong usage, and
// lets flags come from the environment.
func (a *app) harden(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{err: fmt.Errorf("%s: %w", cmd.Name(), err), hint: "usage: " + cmd.UseLine()}
			}
			return nil
		}
	}
	if inner := cmd.RunE; inner != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd.Flags(), a.getenv); err != nil {
				return err
			}
			return inner(cmd, args)
		}
	}
}

// fromEnvironment sets the flags that were not given and have a variable.
func fromEnvironment(flags *pflag.FlagSet, getenv func(string) (string, bool)) error {
	var first error
	flags.VisitAll(func(f *pflag.Flag) {
		env := flagEnv(f)
		if env == "" || f.Changed || first != nil {
			return
		}
		if value, ok := getenv(env); ok && value != "" {
			if err := flags.Set(f.Name, value); err != nil {
				first = usagef("", "%s: %w", env, err)
			}
		}
	})
	return first
}

// envAnnotation marks a flag that an environment variable can set.
const envAnnotation = "sregistry-fs-env"

func flagEnv(f *pflag.Flag) string {
	if v := f.Annotations[envAnnotation]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// withEnv lets each of flags be set by SREGISTRY_FS_<FLAG>.
func withEnv(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f := flags.Lookup(name)
		env := "SREGISTRY_FS_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		f.Annotations = map[string][]string{envAnnotation: {env}}
	}
}

func flagHint(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
			return "did you mean --" + near + "?"
		}
	}
	return "see sregistry-fs " + strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), "sregistry-fs")) + " --help"
}

// settings opens the secrets file.
func (a *app) settings(log *slog.Logger) (*secrets.Source, error) {
	return secrets.Open(secrets.Options{Getenv: a.getenv, Log: log})
}

// logger writes to w at the level that the flags, else MESSAGELEVEL, else
// usual name.
func (a *app) logger(w io.Writer, usual slog.Level) *slog.Logger {
	level := usual
	if v, ok := a.getenv("MESSAGELEVEL"); ok {
		level = messageLevel(v, usual)
	}
	switch {
	case a.cfg.Verbose:
		level = slog.LevelDebug
	case a.cfg.Quiet:
		level = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// messageLevel reads the Python client's levels, as numbers (5 debug … -5
// abort) or names.
func messageLevel(value string, usual slog.Level) slog.Level {
	n, err := strconv.Atoi(value)
	if err != nil {
		names := map[string]int{
			"DEBUG": 5, "VERBOSE": 2, "VERBOSE1": 2, "VERBOSE2": 3, "VERBOSE3": 4, "INFO": 1, "CUSTOM": 1,
			"QUIET": 0, "LOG": -1, "WARNING": -2, "ERROR": -3, "CRITICAL": -4, "ABORT": -5,
		}
		known := false
		if n, known = names[strings.ToUpper(value)]; !known {
			return usual
		}
	}
	switch {
	case n >= 2:
		return slog.LevelDebug
	case n == 1 || n == -1:
		return slog.LevelInfo
	case n == -2:
		return slog.LevelWarn
	}
	return slog.LevelError
}

// isTerminal reports whether w is a terminal, where progress makes sense.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && terminal(f)
}
