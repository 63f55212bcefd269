//go:build bench

package bench

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sylabs/sif/v2/pkg/sif"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
)

// image is a SIF in the servers' folder.
type image struct {
	name   string // the file is name.simg; its tag is latest
	what   string // for people
	path   string
	size   int64
	offset int64 // of the squashfs within the SIF

	loader  string // inside, as is all below
	libs    string // the loader's library path, relative
	python  string
	list    string // what ls -lR lists
	touched int64  // bytes of the 128 KiB chunks that running it touches; see trace
}

// The collection is also the S3 bucket.
const collection = "images"

func (b *bench) www() string { return filepath.Join(b.dir, "www") }

// largeImage has few large files that do not compress.
func (b *bench) largeImage() *image {
	dir := filepath.Join(b.www(), collection)
	b.must(os.MkdirAll(dir, 0o755))
	path := imagetest.SIF(b.t, dir, imagetest.Options{Name: "large.simg", PadMB: b.cfg.largeMB})
	return b.finish(&image{name: "large", what: "one large file", path: path})
}

// programImages have this machine's Python, many small files, and some
// data that nobody reads, packed in two ways.
func (b *bench) programImages() []*image {
	const python = "/usr/bin/python3"
	root := filepath.Join(b.dir, "root")
	b.must(os.MkdirAll(root, 0o755))
	out, err := exec.Command(python, "-c", "import os, sys, sysconfig; print(os.path.realpath(sys.executable)); print(sysconfig.get_path('stdlib'))").Output()
	if err != nil {
		b.t.Skipf("needs %s: %v", python, err)
	}
	binary, stdlib, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	sources := []string{binary, stdlib}
	if more := "/usr/lib/python3/dist-packages"; !b.cfg.quick {
		if _, err := os.Stat(more); err == nil {
			sources = append(sources, more)
		}
	}
	libs, loader := b.libraries(binary, stdlib)
	b.copyInto(root, "-a", sources)
	b.copyInto(root, "-L", append(libs, loader))
	b.must(os.MkdirAll(filepath.Join(root, "data"), 0o755))
	filler, err := os.Create(filepath.Join(root, "data", "unused.bin"))
	b.must(err)
	_, err = io.Copy(filler, imagetest.Filler(2, int64(b.cfg.padMB)<<20))
	b.must(errors.Join(err, filler.Close()))

	var dirs []string
	for _, lib := range libs {
		if dir := strings.TrimPrefix(filepath.Dir(lib), "/"); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	var images []*image
	for _, comp := range []string{"gzip", "zstd"} {
		name := "python-" + comp
		part := filepath.Join(b.dir, name+".squashfs")
		if b.run("mksquashfs", root, part, "-noappend", "-no-progress", "-quiet", "-all-root", "-comp", comp) != nil {
			b.t.Logf("mksquashfs cannot do %s", comp)
			continue
		}
		path := filepath.Join(b.www(), collection, name+".simg")
		b.sif(path, part)
		images = append(images, b.finish(&image{
			name: name, what: "Python, many small files, " + comp, path: path,
			loader: strings.TrimPrefix(loader, "/"), libs: strings.Join(dirs, ":"),
			python: strings.TrimPrefix(binary, "/"), list: strings.TrimPrefix(stdlib, "/"),
		}))
		if b.cfg.quick {
			break
		}
	}
	return images
}

// libraries gives what the interpreter and its own extensions are linked
// with, and the loader.
func (b *bench) libraries(binary, stdlib string) (libs []string, loader string) {
	b.t.Helper()
	extensions, err := filepath.Glob(filepath.Join(stdlib, "lib-dynload", "*.so"))
	b.must(err)
	out, err := exec.Command("ldd", append([]string{binary}, extensions...)...).Output()
	if err != nil {
		b.t.Logf("ldd: %v", err) // some extension's library is missing here, and there
	}
	for _, m := range regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+)`).FindAllStringSubmatch(string(out), -1) {
		if strings.HasPrefix(filepath.Base(m[1]), "ld-") {
			loader = m[1]
		} else if !slices.Contains(libs, m[1]) {
			libs = append(libs, m[1])
		}
	}
	if loader == "" || len(libs) == 0 {
		b.t.Fatalf("%s is not linked with anything:\n%s", binary, out)
	}
	return libs, loader
}

func (b *bench) copyInto(root, how string, paths []string) {
	b.t.Helper()
	args := []string{"-C", "/", "cp", how, "--parents", "-t", root} // some cp look for parents below the working directory
	for _, path := range paths {
		args = append(args, strings.TrimPrefix(path, "/"))
	}
	b.must(b.run("env", args...))
}

// sif wraps a squashfs.
func (b *bench) sif(path, squashfs string) {
	b.t.Helper()
	part, err := os.Open(squashfs)
	b.must(err)
	defer part.Close()
	system, err := sif.NewDescriptorInput(sif.DataPartition, part, sif.OptPartitionMetadata(sif.FsSquash, sif.PartPrimSys, "amd64"))
	b.must(err)
	img, err := sif.CreateContainerAtPath(path, sif.OptCreateDeterministic(),
		sif.OptCreateWithLaunchScript(imagetest.LaunchLine), sif.OptCreateWithDescriptors(system))
	b.must(err)
	b.must(img.UnloadContainer())
	b.must(os.Remove(squashfs))
}

// finish reads what the measurements have to know of a SIF.
func (b *bench) finish(img *image) *image {
	b.t.Helper()
	b.must(os.Chmod(img.path, 0o644))
	info, err := os.Stat(img.path)
	b.must(err)
	img.size = info.Size()
	f, err := sif.LoadContainerFromPath(img.path, sif.OptLoadWithFlag(os.O_RDONLY))
	b.must(err)
	system, err := f.GetDescriptor(sif.WithPartitionType(sif.PartPrimSys))
	b.must(err)
	img.offset = system.Offset()
	b.must(f.UnloadContainer())
	return img
}

// run runs a tool to its end; its output is shown if it fails.
func (b *bench) run(name string, args ...string) error {
	b.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		b.t.Logf("%s: %v\n%s", name, err, out)
	}
	return err
}
