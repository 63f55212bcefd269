package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/sregistry/sregistry-fs/backends/all"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sregistry-fs": main})
}

// Each script is the program used in a shell: what it prints, its exit code,
// what is on disk afterwards.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("SREGISTRY_FS_CACHE_DIR", filepath.Join(env.WorkDir, "cache"))
			for name, seed := range map[string]byte{"one.img": 1, "two.img": 2} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), smallImage(seed), 0o600); err != nil {
					return err
				}
			}
			env.Defer(func() { unmountBelow(env.WorkDir) })
			return os.MkdirAll(filepath.Join(env.WorkDir, "home"), 0o700)
		},
		Condition: func(cond string) (bool, error) {
			_, err := os.Stat("/dev/fuse")
			return cond == "fuse" && err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":      exitsWith,
			"await":     await,
			"signal":    signalPID,
			"killmount": killMount,
		},
	})
}

// smallImage is an ext3 image as far as its headers tell.
func smallImage(seed byte) []byte {
	const blocks = 64
	img := make([]byte, blocks*1024)
	for i := 2048; i < len(img); i += sha256.Size {
		sum := sha256.Sum256([]byte{seed, byte(i), byte(i >> 8)})
		copy(img[i:], sum[:])
	}
	super := img[1024:]
	binary.LittleEndian.PutUint32(super[0:], 16)      // inodes
	binary.LittleEndian.PutUint32(super[4:], blocks)  // blocks
	binary.LittleEndian.PutUint32(super[20:], 1)      // first data block
	binary.LittleEndian.PutUint32(super[32:], 8192)   // blocks per group
	binary.LittleEndian.PutUint32(super[40:], 16)     // inodes per group
	binary.LittleEndian.PutUint16(super[56:], 0xEF53) // magic
	binary.LittleEndian.PutUint16(super[58:], 1)      // clean
	binary.LittleEndian.PutUint32(super[76:], 1)      // revision
	binary.LittleEndian.PutUint16(super[88:], 128)    // inode size
	binary.LittleEndian.PutUint32(super[92:], 0x4)    // has a journal
	return img
}

// exitsWith runs a command and checks its exit code: code 3 sregistry-fs ….
func exitsWith(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program [args...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// await waits until a path exists (with !: until it is gone) or, given a
// second argument, until the file holds that text.
func await(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(path)
		found := err == nil || !os.IsNotExist(err)
		if len(args) > 1 {
			found = bytes.Contains(text, []byte(args[1]))
		}
		if found != neg {
			return
		}
	}
	ts.Fatalf("waited in vain for %v", args)
}

// signalPID sends TERM to the mount's daemon: signal MOUNTPOINT.
func signalPID(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(signalMount(ts, args[0], syscall.SIGTERM))
}

// killMount kills the mount's daemon just after the kernel learned the mountpoint's
// attributes, and waits for the kernel to notice.
func killMount(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	_, err := os.Lstat(path)
	ts.Check(err)
	ts.Check(signalMount(ts, args[0], syscall.SIGKILL))
	for {
		if _, err := os.ReadDir(path); errors.Is(err, syscall.ENOTCONN) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func signalMount(ts *testscript.TestScript, mountpoint string, sig syscall.Signal) error {
	var st status
	lookup := func(name string) (string, bool) { v := ts.Getenv(name); return v, v != "" }
	err := ask(context.Background(), socketDirs(lookup, os.Geteuid()), ts.MkAbs(mountpoint), "GET", "/status", nil, &st)
	if err != nil {
		return err
	}
	return syscall.Kill(st.PID, sig)
}

// unmountBelow leaves nothing mounted behind a script that failed.
func unmountBelow(dir string) {
	for _, m := range mounts() {
		if strings.HasPrefix(m.point, dir+"/") {
			_ = abort(m)
			_ = detach(m.point)
		}
	}
}

// The help texts are part of the product: a change to them is seen in review.
// Run with -update to accept one.
func TestHelp(t *testing.T) {
	a := &app{drivers: all.Drivers(), getenv: func(string) (string, bool) { return "", false }, now: time.Now}
	var visit func(cmd *cobra.Command)
	seen := map[string]bool{}
	visit = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			if c.Name() != "completion" && c.Name() != "help" {
				visit(c)
			}
		}
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".txt"
		seen[name] = true
		var out, errs bytes.Buffer
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		if code := run(t.Context(), args, nil, &out, &errs, a.getenv); code != 0 || errs.Len() > 0 {
			t.Errorf("%v: exit code %d, %s", args, code, errs.String())
		}
		if cmd.Runnable() && !strings.Contains(out.String(), "Examples:") {
			t.Errorf("%v: no example", args)
		}
		golden := filepath.Join("testdata", "help", name)
		if *update {
			if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || out.String() != string(want) {
			t.Errorf("%v: help differs from %s (%v); got\n%s", args, golden, err, out.String())
		}
	}
	visit(a.command())
	files, err := filepath.Glob("testdata/help/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !seen[filepath.Base(f)] {
			t.Errorf("%s belongs to no command", f)
		}
	}
}
