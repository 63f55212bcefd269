//go:build bench

package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// results has every figure of every round.
type results map[cell][]float64

// cell is one figure of one contender in one table.
type cell struct{ table, row, column string }

func (r results) note(table, row, column string, value float64) {
	c := cell{table, row, column}
	r[c] = append(r[c], value)
}

const (
	coldTable = "cold"
	warmTable = "warm"

	speed    = "MB/s"
	first    = "first byte"
	cpu      = "CPU"
	memory   = "memory"
	requests = "requests"
	sent     = "sent"

	sequentialFresh = "sequential"
	sequentialAgain = "sequential again"
	randomFresh     = "random"
	randomAgain     = "random again"

	// programPatience is after which a file system that hangs is cut off.
	programPatience = 30 * time.Second

	seconds = "seconds"
	moved   = "moved"
)

// fail notes that a contender could not be measured. For ours that fails the
// benchmark; the others get it into their row.
func (b *bench) fail(c *contender, err error) {
	b.t.Helper()
	if c.ours || c.kind != mounted {
		b.t.Errorf("%s: %v", c.name, err)
		return
	}
	b.t.Logf("%s: %v", c.name, err)
	c.missing = "failed: " + strings.Join(strings.Fields(err.Error()), " ")
	if len(c.missing) > 80 {
		c.missing = c.missing[:80] + "…"
	}
}

// readCold reads an image from end to end with nothing in any cache but the
// server's.
func (b *bench) readCold(c *contender, img *image) {
	b.t.Helper()
	if !c.cold || c.missing != "" {
		return
	}
	note := func(column string, v float64) { b.results.note(coldTable, c.name, column, v) }
	switch c.kind {
	case plain:
		a, err := b.ask(nil, "sequential", img.path)
		if err != nil {
			b.t.Fatal(err)
		}
		note(speed, float64(a.Bytes)/1e6/a.Seconds)
		note(first, a.First*1e3)
		return
	case download:
		dir := b.place(nil)
		defer os.RemoveAll(dir)
		asked, body := b.servers.requests(), b.servers.sent()
		curl := b.curl(b.servers.near, img, filepath.Join(dir, "image"))
		start := time.Now()
		if err := curl.Run(); err != nil {
			b.t.Fatal(err)
		}
		took := time.Since(start).Seconds()
		note(speed, float64(img.size)/1e6/took)
		note(cpu, processorTime(curl)/(float64(img.size)/1e9))
		note(requests, float64(b.servers.requests()-asked))
		note(sent, float64(b.servers.sent()-body)/float64(img.size))
		return
	}
	dir := b.place(c.who, "home", "mnt")
	defer os.RemoveAll(dir)
	d, err := b.launch(c.who, c.start(b.servers.near, filepath.Join(dir, "home"), filepath.Join(dir, "mnt")), filepath.Join(dir, "mnt"))
	if err != nil {
		b.fail(c, err)
		return
	}
	path := filepath.Join(d.mnt, c.path(img))
	used, asked, body := d.processorTime(), b.servers.requests(), b.servers.sent()
	a, err := b.ask(c.who, "sequential", path)
	if err == nil && a.Bytes != img.size {
		err = fmt.Errorf("read %d bytes of %d", a.Bytes, img.size)
	}
	if err == nil && c.ours {
		_, err = b.ask(c.who, "kept", path)
	}
	if err != nil {
		b.fail(c, errors.Join(err, d.stop()))
		return
	}
	note(speed, float64(a.Bytes)/1e6/a.Seconds)
	note(first, a.First*1e3)
	note(cpu, (d.processorTime()-used)/(float64(img.size)/1e9))
	note(memory, float64(d.memory("VmHWM")-d.idle)/1e6)
	if err := d.stop(); err != nil {
		b.fail(c, err)
		return
	}
	note(requests, float64(b.servers.requests()-asked))
	if !strings.Contains(c.name, "S3") { // its log does not tell
		note(sent, float64(b.servers.sent()-body)/float64(img.size))
	}
}

// readWarm reads an image that is in the contender's cache: after a fresh
// mount, so that the kernel has nothing of it, and once more; from end to end, and in
// pieces in random order.
func (b *bench) readWarm(c *contender, img *image, verify bool) {
	b.t.Helper()
	if !c.warm || c.missing != "" {
		return
	}
	note := func(op, freshly, again string, path string) error {
		for _, column := range []string{freshly, again} {
			a, err := b.ask(c.who, op, path)
			if err != nil {
				return err
			}
			if op == "random" {
				b.results.note(warmTable, c.name, column, float64(a.Reads)/a.Seconds)
			} else {
				b.results.note(warmTable, c.name, column, float64(a.Bytes)/1e6/a.Seconds)
			}
		}
		return nil
	}
	passes := []struct{ op, freshly, again string }{
		{"sequential", sequentialFresh, sequentialAgain},
		{"random", randomFresh, randomAgain},
	}
	if c.kind == plain {
		for _, p := range passes {
			if err := note(p.op, p.freshly, p.again, img.path); err != nil {
				b.t.Fatal(err)
			}
		}
		return
	}
	dir := b.place(c.who, "home", "mnt")
	defer os.RemoveAll(dir)
	home, mnt := filepath.Join(dir, "home"), filepath.Join(dir, "mnt")
	with := func(use func(path string) error) error {
		d, err := b.launch(c.who, c.start(b.servers.near, home, mnt), mnt)
		if err != nil {
			return err
		}
		return errors.Join(use(filepath.Join(mnt, c.path(img))), d.stop())
	}
	err := with(func(path string) error { // fills the cache
		a, err := b.ask(c.who, "sum", path)
		if err == nil && c.ours {
			_, err = b.ask(c.who, "kept", path)
		}
		if want := b.digest(img); err == nil && verify && a.SHA256 != want {
			b.t.Errorf("%s gave wrong bytes: %s, want %s", c.name, a.SHA256, want)
		}
		return err
	})
	for _, p := range passes {
		if err == nil {
			err = with(func(path string) error { return note(p.op, p.freshly, p.again, path) })
		}
	}
	if err != nil {
		b.fail(c, err)
	}
}

func (b *bench) digest(img *image) string {
	b.t.Helper()
	a, err := sum(img.path)
	b.must(err)
	return a.SHA256
}

// runCold starts a program out of an image on the other side of the slow
// link with nothing cached, and lists its library: mount the inside with squashfuse, start
// Python, import, ls -lR. Whatever still moves until the unmount counts.
func (b *bench) runCold(c *contender, img *image) {
	b.t.Helper()
	if !c.run || c.missing != "" {
		return
	}
	table := img.name
	note := func(column string, v float64) { b.results.note(table, c.name, column, v) }
	dir := b.place(c.who, "home", "mnt", "inner")
	defer os.RemoveAll(dir)
	mnt, inner := filepath.Join(dir, "mnt"), filepath.Join(dir, "inner")
	before, asked := b.servers.moved(), b.servers.requests()
	switch c.kind {
	case plain:
		if img.touched == 0 {
			b.must(b.trace(img))
		}
		took, err := b.program(nil, img, img.path, inner)
		if err != nil {
			b.t.Fatal(err)
		}
		note(seconds, took)
	case download:
		file := filepath.Join(dir, "image")
		curl := b.curl(b.servers.far, img, file)
		start := time.Now()
		if err := curl.Run(); err != nil {
			b.t.Fatal(err)
		}
		fetched := time.Since(start).Seconds()
		took, err := b.program(nil, img, file, inner)
		if err != nil {
			b.t.Fatal(err)
		}
		note(seconds, fetched+took)
		note(cpu, processorTime(curl))
		note(memory, float64(curl.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)*1024/1e6)
	default:
		d, err := b.launch(c.who, c.start(b.servers.far, filepath.Join(dir, "home"), mnt), mnt)
		if err != nil {
			b.fail(c, err)
			return
		}
		used := d.processorTime()
		patience := time.AfterFunc(programPatience, d.abort)
		took, err := b.program(c.who, img, filepath.Join(mnt, c.path(img)), inner)
		patience.Stop()
		if err == nil {
			note(seconds, took)
			note(cpu, d.processorTime()-used)
			note(memory, float64(d.memory("VmHWM"))/1e6)
		}
		if err := errors.Join(err, d.stop()); err != nil {
			b.fail(c, err)
			return
		}
	}
	if c.kind != plain {
		note(moved, float64(b.servers.moved()-before)/1e6)
		note(requests, float64(b.servers.requests()-asked))
	}
}

// program mounts the squashfs inside file at inner and uses it. It returns the
// seconds from the mount of squashfuse to the end of the last program.
func (b *bench) program(who *account, img *image, file, inner string) (took float64, err error) {
	if out, err := b.command(who, "/nonexistent", "stat", file).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("stat: %w: %s", err, out)
	}
	start := time.Now()
	squash := b.command(who, "/nonexistent", "squashfuse", "-f", "-o", "offset="+strconv.FormatInt(img.offset, 10), file, inner)
	d, err := b.launch(who, squash, inner)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	in := func(path string) string { return filepath.Join(inner, path) }
	libs := strings.Split(img.libs, ":")
	for i := range libs {
		libs[i] = in(libs[i])
	}
	// By way of env: while this process starts another, all of it may have to
	// wait for the exec, and an exec from the image waits for the link, which is here.
	python := b.command(who, "/nonexistent", "env", in(img.loader), "--library-path", strings.Join(libs, ":"), in(img.python), "-s", "-B",
		"-c", "import json, email, http.client; print(json.__file__)")
	python.Env = append(python.Env, "PYTHONHOME="+filepath.Dir(filepath.Dir(in(img.list))))
	out, err := python.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), inner) {
		return 0, fmt.Errorf("python inside the image: %w: %s", err, out)
	}
	list := b.command(who, "/nonexistent", "ls", "-lR", in(img.list))
	var errText bytes.Buffer
	list.Stderr = &errText
	if err := list.Run(); err != nil {
		return 0, fmt.Errorf("ls -lR: %w: %s", err, errText.String())
	}
	return time.Since(start).Seconds(), nil
}

// trace learns which 128 KiB chunks of an image a local run touches, by
// running it over a bare file system that sees every read as squashfuse makes it.
func (b *bench) trace(img *image) error {
	dir := b.place(nil, "mnt", "inner")
	defer os.RemoveAll(dir)
	mnt := filepath.Join(dir, "mnt")
	cmd := b.command(nil, dir, b.self, img.path, mnt)
	cmd.Env = append(cmd.Env, childEnv+"=trace")
	var out bytes.Buffer
	cmd.Stdout = &out
	d, err := b.launch(nil, cmd, mnt)
	if err != nil {
		return err
	}
	_, err = b.program(nil, img, filepath.Join(mnt, flat(img)), filepath.Join(dir, "inner"))
	if err := errors.Join(err, d.stop()); err != nil {
		return err
	}
	var a answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		return err
	}
	img.touched = a.Bytes
	return nil
}

func (b *bench) curl(at origin, img *image, to string) *exec.Cmd {
	return b.command(nil, "/nonexistent", "curl", "-sS", "--fail", "-o", to, at.http+"/"+collection+"/"+flat(img))
}

// processorTime gives the seconds that a process that has ended has computed.
func processorTime(cmd *exec.Cmd) float64 {
	return (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}

// processorTime gives the seconds that the daemon has computed so far.
func (d *daemon) processorTime() float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // proc(5): state is the first word of it, and field 3
	words := strings.Fields(rest)
	user, _ := strconv.ParseFloat(words[14-3], 64)
	system, _ := strconv.ParseFloat(words[15-3], 64)
	const ticks = 100 // USER_HZ, on every architecture that Go runs on
	return (user + system) / ticks
}

// memory gives a line of /proc/PID/status in bytes.
func (d *daemon) memory(line string) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "\n"+line+":")
	words := strings.Fields(rest)
	if len(words) == 0 {
		return 0
	}
	kib, _ := strconv.ParseInt(words[0], 10, 64)
	return kib << 10
}
