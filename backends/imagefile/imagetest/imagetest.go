// Package imagetest builds small real images for tests, with the tools that
// people build theirs with: mksquashfs, mke2fs and the SIF library. A test that
// needs a tool this machine lacks is skipped and says which.
package imagetest

import (
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// LaunchLine is what Singularity puts before a bare squashfs or ext3 so that
// the image can be executed.
const LaunchLine = "#!/usr/bin/env run-singularity\n"

// OSRelease is /etc/os-release in every image.
const OSRelease = "NAME=\"Test image\"\nID=imagetest\n"

// Inspect is what an image says about itself. An empty field is a file that
// the image does not have.
type Inspect struct {
	Labels                                          map[string]string
	Deffile, Runscript, Help, Environment, TestText string
}

// DefaultInspect is the Inspect of an image whose Options give none. Each call
// returns a fresh value.
func DefaultInspect() Inspect {
	return Inspect{
		Labels:      map[string]string{"MAINTAINER": "vsoch", "org.label-schema.build-date": "Monday_7_January_2019_0:01:50_CET"},
		Deffile:     "Bootstrap: docker\nFrom: alpine\n\n%runscript\n    /bin/hello\n",
		Runscript:   "#!/bin/sh\n\nexec /bin/hello \"$@\"\n",
		Help:        "Says hello.\n",
		Environment: "#!/bin/sh\nexport GREETING=hello\n",
		TestText:    "#!/bin/sh\n/bin/hello\n",
	}
}

// Options say what goes into an image. The zero value is a gzip image of a few
// KiB with DefaultInspect and no program.
type Options struct {
	// Name is the file's name within the directory; empty gives one by format.
	Name string
	// Compression is mksquashfs's -comp: gzip (the default), xz, zstd, lz4, lzo, lzma.
	Compression string
	// BlockSize is mksquashfs's -b in bytes; 0 is its default, 128 KiB.
	BlockSize int
	// MkfsArgs are further arguments of mksquashfs or mke2fs.
	MkfsArgs []string
	// LaunchLine puts LaunchLine before a bare squashfs or ext3. A SIF always has it.
	LaunchLine bool
	// Files are further files of the root, by path without a leading slash.
	Files map[string]string
	// Program adds /bin/hello, a static program (about 1.5 MB; costs a link).
	Program bool
	// PadMB adds /data/filler.bin with that many MiB of incompressible bytes.
	PadMB int
	// Inspect overrides DefaultInspect.
	Inspect *Inspect
	// OldLayout leaves .singularity.d out and puts the runscript and
	// environment where Singularity 2.0 to 2.2 had them.
	OldLayout bool
	// NoJSON leaves the inspect JSON out of a SIF, as Singularity before 3.6 did.
	NoJSON bool
	// NoDeffile leaves the definition file's object out of a SIF.
	NoDeffile bool
	// Encrypted marks the SIF's partition as encrypted (its bytes are not).
	Encrypted bool
	// Arch is the SIF's architecture; empty means amd64.
	Arch string
}

func (o Options) inspect() Inspect {
	if o.Inspect != nil {
		return *o.Inspect
	}
	return DefaultInspect()
}

// Squashfs writes a squashfs image into dir and returns its path.
func Squashfs(t testing.TB, dir string, o Options) string {
	t.Helper()
	out := filepath.Join(dir, name(o, "image.simg"))
	squashfs(t, tree(t, o), out, o)
	if o.LaunchLine {
		prepend(t, out)
	}
	return out
}

// Ext3 writes an ext3 image, as Singularity 2.x made them, into dir and
// returns its path.
func Ext3(t testing.TB, dir string, o Options) string {
	t.Helper()
	root := tree(t, o)
	out := filepath.Join(dir, name(o, "image.img"))
	args := append([]string{"-q", "-F", "-t", "ext3", "-b", "1024", "-d", root}, o.MkfsArgs...)
	run(t, "mke2fs", append(args, out, strconv.Itoa(o.PadMB+8)+"M")...)
	if o.LaunchLine {
		prepend(t, out)
	}
	return out
}

// Filler gives n bytes that do not compress and are the same for the same seed.
func Filler(seed uint64, n int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), n)
}

func name(o Options, otherwise string) string {
	if o.Name != "" {
		return o.Name
	}
	return otherwise
}

func squashfs(t testing.TB, root, out string, o Options) {
	t.Helper()
	const stamp = "1700000000" // the same image every time
	args := []string{
		root, out, "-noappend", "-no-progress", "-quiet", "-all-root", "-processors", "1",
		"-mkfs-time", stamp, "-all-time", stamp,
	}
	if o.Compression != "" {
		args = append(args, "-comp", o.Compression)
	}
	if o.BlockSize != 0 {
		args = append(args, "-b", strconv.Itoa(o.BlockSize))
	}
	run(t, "mksquashfs", append(args, o.MkfsArgs...)...)
}

// tree makes the image's root directory.
func tree(t testing.TB, o Options) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range rootFiles(t, o) {
		write(t, filepath.Join(root, path), content)
	}
	for path, content := range o.Files {
		write(t, filepath.Join(root, path), content)
	}
	if o.Program {
		hello(t, filepath.Join(root, "bin", "hello"))
	}
	if o.PadMB > 0 {
		pad(t, filepath.Join(root, "data", "filler.bin"), int64(o.PadMB)<<20)
	}
	if !o.OldLayout {
		symlink(t, ".singularity.d/runscript", filepath.Join(root, "singularity"))
		symlink(t, ".singularity.d/env/90-environment.sh", filepath.Join(root, "environment"))
	}
	return root
}

func rootFiles(t testing.TB, o Options) map[string]string {
	t.Helper()
	in := o.inspect()
	files := map[string]string{
		"singularity": in.Runscript,
		"environment": in.Environment,
	}
	if !o.OldLayout {
		labels := ""
		if in.Labels != nil {
			b, err := json.MarshalIndent(in.Labels, "", "\t")
			check(t, err)
			labels = string(b)
		}
		files = map[string]string{
			".singularity.d/labels.json":           labels,
			".singularity.d/Singularity":           in.Deffile,
			".singularity.d/runscript":             in.Runscript,
			".singularity.d/runscript.help":        in.Help,
			".singularity.d/test":                  in.TestText,
			".singularity.d/env/90-environment.sh": in.Environment,
		}
	}
	for path, content := range files {
		if content == "" {
			delete(files, path)
		}
	}
	files["etc/os-release"] = OSRelease
	if !o.OldLayout {
		files[".singularity.d/env/01-base.sh"] = "#!/bin/sh\nPATH=/bin\nexport PATH\n"
		files[".singularity.d/actions/run"] = "#!/bin/sh\nexec /.singularity.d/runscript \"$@\"\n"
	}
	return files
}

func hello(t testing.TB, out string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(out), 0o755))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out,
		"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest/hello")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build hello: %v\n%s", err, msg)
	}
}

func pad(t testing.TB, path string, n int64) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	check(t, err)
	_, err = io.Copy(f, Filler(1, n))
	check(t, err)
	check(t, f.Close())
}

func write(t testing.TB, path, content string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(content), 0o755))
	check(t, os.Chtimes(path, time.Unix(1700000000, 0), time.Unix(1700000000, 0)))
}

func symlink(t testing.TB, target, path string) {
	t.Helper()
	check(t, os.Symlink(target, path))
}

func prepend(t testing.TB, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, append([]byte(LaunchLine), b...), 0o644))
}

// run runs a tool, or skips the test when this machine does not have it.
func run(t testing.TB, tool string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("needs %s: %v", tool, err)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
