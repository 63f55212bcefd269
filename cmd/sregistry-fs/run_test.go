package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

func env(values map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := values[name]; return v, ok }
}

func TestExitCodes(t *testing.T) {
	want := map[backends.Kind]int{
		backends.NotFound: 3,
		backends.Denied:   4, backends.Frozen: 4, backends.ReadOnly: 4,
		backends.Unavailable: 5, backends.Timeout: 5, backends.Throttled: 5,
	}
	for _, k := range backends.Kinds() {
		expect := want[k]
		if expect == 0 {
			expect = 1
		}
		err := fmt.Errorf("wrapped: %w", &backends.Error{Op: "x", Kind: k})
		if got := exitCode(t.Context(), err); got != expect {
			t.Errorf("%v: exit code %d, want %d", k, got, expect)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for err, expect := range map[error]int{
		nil:              0,
		usagef("", "no"): 2,
		&daemonError{verdict{Error: "x", Code: 4}}:       4,
		&secrets.FileError{Path: "p", Problem: "is bad"}: 1,
	} {
		if got := exitCode(t.Context(), err); got != expect {
			t.Errorf("%v: exit code %d, want %d", err, got, expect)
		}
	}
	if got := exitCode(ended, fmt.Errorf("pull: %w", context.Canceled)); got != 130 {
		t.Errorf("interrupted: exit code %d", got)
	}
}

func TestInterruptedCommand(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	code := run(ctx, []string{"push", "--any-file", "--cache-dir", filepath.Join(dir, "cache"), "-b", "dir:" + dir, "run_test.go", "a/b"}, nil, &out, &errs, env(nil))
	if code != exitInterrupted {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
}

func TestComplain(t *testing.T) {
	var errs bytes.Buffer
	a := &app{stderr: &errs}
	a.complain(fmt.Errorf("push: %w", &backends.Error{Op: "send", Ref: backends.Ref{Collection: "lib", Image: "x", Tag: "1"}, Kind: backends.Denied, Hint: "log in"}))
	a.complain(&backends.Error{Op: "list", Kind: backends.Throttled, After: 90 * time.Second})
	want := "sregistry-fs: push: send lib/x:1: permission denied\nhint: log in\n" +
		"sregistry-fs: list: throttled by the registry\nhint: try again in 1m30s\n"
	if errs.String() != want {
		t.Errorf("got\n%swant\n%s", errs.String(), want)
	}
}

func TestMessageLevel(t *testing.T) {
	for value, want := range map[string]slog.Level{
		"5": slog.LevelDebug, "2": slog.LevelDebug, "DEBUG": slog.LevelDebug, "verbose3": slog.LevelDebug,
		"1": slog.LevelInfo, "-1": slog.LevelInfo, "INFO": slog.LevelInfo, "LOG": slog.LevelInfo,
		"-2": slog.LevelWarn, "WARNING": slog.LevelWarn,
		"0": slog.LevelError, "QUIET": slog.LevelError, "-3": slog.LevelError, "-5": slog.LevelError, "ABORT": slog.LevelError,
		"": slog.Level(42), "loud": slog.Level(42),
	} {
		if got := messageLevel(value, slog.Level(42)); got != want {
			t.Errorf("MESSAGELEVEL=%q: %v, want %v", value, got, want)
		}
	}
	a := &app{getenv: env(map[string]string{"MESSAGELEVEL": "DEBUG"})}
	a.cfg.Quiet = true
	if a.logger(&bytes.Buffer{}, slog.LevelInfo).Enabled(t.Context(), slog.LevelWarn) {
		t.Error("--quiet gives way to MESSAGELEVEL")
	}
}

func TestNearest(t *testing.T) {
	names := []string{"dir", "registry", "s3", "google-storage", "google-drive"}
	for word, want := range map[string]string{
		"dri": "dir", "di": "dir", "dirr": "dir", "Registry": "registry", "regsitry": "registry", "google-store": "google-storage",
		"google-drove": "google-drive", "s4": "s3", "x": "", "": "", "ftp": "", "nothing-like-it": "",
	} {
		if got := nearest(word, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1000": 1000, "500M": 500 << 20, "20GiB": 20 << 30, "20 GiB": 20 << 30, "1g": 1 << 30, "2TB": 2e12, " 4k ": 4 << 10,
	} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "many", "-1", "1X", "99999999999P"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d", text, n)
		}
	}
}

// A secret on the command line would be in the process list: it is refused
// without being repeated.
func TestOptions(t *testing.T) {
	s := spec{driver: backends.Driver{Scheme: "x", Options: []backends.Option{{Name: "base"}, {Name: "token", Env: "SREGISTRY_X_TOKEN", Secret: true}}}}
	if err := s.options(map[string]string{"base": "b"}); err != nil {
		t.Error(err)
	}
	err := s.options(map[string]string{"token": "canary"})
	if err == nil || strings.Contains(err.Error()+hintOf(err), "canary") || !strings.Contains(hintOf(err), "SREGISTRY_X_TOKEN") {
		t.Errorf("a secret option: %v (%s)", err, hintOf(err))
	}
	if err := s.options(map[string]string{"bsae": "b"}); err == nil || !strings.Contains(hintOf(err), "did you mean base?") {
		t.Errorf("a misspelt option: %v (%s)", err, hintOf(err))
	}
	var m map[string]string
	if err := (&optionsValue{&m}).Set("token canary"); err == nil {
		t.Error("no = and no error")
	}
}

// What names a registry in the cache and in the table of mounts holds no
// password, and tells users of one registry apart.
func TestIdentity(t *testing.T) {
	driver := backends.Driver{Scheme: "registry", Location: "https://HOST", Options: []backends.Option{
		{Name: "username", Env: "U"}, {Name: "token", Env: "T", Secret: true}, {Name: "zone", Env: "Z", Default: "eu"},
	}}
	s := spec{driver: driver, location: "https://me:canary@reg.example.org/sub/"}
	identity := func(settings map[string]string) string {
		return s.identity(backends.Config{Location: s.location, Settings: secrets.Fixed("registry", settings)})
	}
	one := identity(map[string]string{"U": "one", "T": "canary", "Z": "eu"})
	if one != "registry:https://me@reg.example.org/sub username=one" {
		t.Errorf("identity %q", one)
	}
	if one == identity(map[string]string{"U": "two"}) {
		t.Error("two users have one identity")
	}
	if got := (&session{spec: s}).source(); got != "registry:https://reg.example.org/sub" {
		t.Errorf("source %q", got)
	}
	for _, c := range [][2]string{{"", "registry"}, {"bucket/prefix", "registry:bucket/prefix"}, {"https://h:1", "registry:https://h:1"}} {
		if got := (&session{spec: spec{driver: driver, location: c[0]}}).source(); got != c[1] {
			t.Errorf("source of %q is %q, want %q", c[0], got, c[1])
		}
	}
}

func TestCollectionOf(t *testing.T) {
	for path, want := range map[string]string{
		"": "", "/": "", ".": "", "vsoch": "vsoch", "/a/b/": "a/b", "vsoch/hello:1.simg": "vsoch", "a/b/hello.sif": "a/b", "x:1.simg": "",
	} {
		if got := collectionOf(path); got != want {
			t.Errorf("collectionOf(%q) = %q, want %q", path, got, want)
		}
	}
}

// A file that could not be filled leaves nothing behind, and one that appeared
// meanwhile is not replaced.
func TestWriteAside(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "image.sif")
	if err := writeAside(target, true, func(f *os.File) error { f.WriteString("half"); return errors.New("broken") }); err == nil {
		t.Error("a failed fill is no error")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	err := writeAside(target, false, func(f *os.File) error {
		return errors.Join(os.WriteFile(target, []byte("other"), 0o600), os.WriteFile(f.Name(), []byte("ours"), 0o600))
	})
	if !errors.Is(err, backends.Exists) {
		t.Errorf("a target that appeared: %v", err)
	}
	if text, _ := os.ReadFile(target); string(text) != "other" {
		t.Errorf("the target is %q", text)
	}
	if err := writeAside(target, true, func(f *os.File) error { _, err := f.WriteString("whole"); return err }); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(target); string(text) != "whole" {
		t.Errorf("the target is %q", text)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	a := &app{stderr: &out, now: func() time.Time { return now }}
	p := a.progress("pull a/b:1")
	p.report(1, 2)
	p.done()
	if out.Len() != 0 {
		t.Errorf("progress in a pipe: %q", out.String())
	}
	p = a.progress("pull a/b:1")
	p.w = &out
	now = now.Add(time.Second)
	p.report(1<<20, 4<<20)
	p.report(2<<20, 4<<20) // too soon
	now = now.Add(time.Second)
	p.report(4<<20, 4<<20)
	p.done()
	p.report(5<<20, 4<<20) // a late call of another goroutine
	want := "\rpull a/b:1:  25% of 4.0 MiB, 1.0 MiB/s\x1b[K\rpull a/b:1: 100% of 4.0 MiB, 2.0 MiB/s\x1b[K\r\x1b[K"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
