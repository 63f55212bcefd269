//go:build figures

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

const (
	figuresMB     = 512
	figuresRounds = 5
)

// TestFigures prints first figures of reading an image of some hundred MB: the
// plain file, curl, and the mount cold and warm, in alternation on the same
// bytes. It asserts nothing: speed is for benchmarks.
func TestFigures(t *testing.T) {
	s := newSite(t, registrytest.Options{NoLimits: true})
	dir := t.TempDir()
	openUpParents(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "www", "vsoch"), 0o755); err != nil {
		t.Fatal(err)
	}
	image := imagetest.SIF(t, filepath.Join(dir, "www", "vsoch"), imagetest.Options{Name: "big:1.simg", PadMB: figuresMB})
	size := fileSize(t, image)
	registry, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	if _, err := s.srv.Add(registrytest.Image{Collection: "vsoch", Name: "big", Tag: "1"}, registry); err != nil {
		t.Fatal(err)
	}
	url := serveNginx(t, dir)

	figures := map[string][]float64{}
	note := func(name string, bytes int64, run func()) {
		start := time.Now()
		run()
		figures[name] = append(figures[name], float64(bytes)/1e6/time.Since(start).Seconds())
	}
	read := func(path string) { s.run("dd", "if="+path, "of=/dev/null", "bs=1M", "status=none") }
	read(image) // into the page cache, for everybody
	out := filepath.Join(dir, "curl.out")
	for range figuresRounds {
		note("1 local file", size, func() { read(image) })
		note("2 curl -o, nginx", size, func() { s.run("curl", "-s", "-o", out, url+"/vsoch/big:1.simg") })
		os.Remove(out)
		for _, spec := range []string{"http:" + url, s.spec} {
			kind, _, _ := strings.Cut(spec, ":")
			s.spec = spec
			s.mount()
			path := s.path("vsoch/big:1.simg")
			s.run("ls", s.path("vsoch"))
			note("3 mount cold, "+kind, size, func() { read(path) })
			s.settle(path)
			s.umount()
			s.mount()
			note("4 mount warm, first read after a mount, "+kind, size, func() { read(path) })
			note("5 mount warm, again, "+kind, size, func() { read(path) })
			s.umount()
			if err := os.RemoveAll(s.home + "/cache"); err != nil {
				t.Fatal(err)
			}
			s.spec = "registry:" + s.srv.URL
		}
	}
	var names []string
	for name := range figures {
		names = append(names, name)
	}
	slices.Sort(names)
	base := median(figures["1 local file"])
	curl := median(figures["2 curl -o, nginx"])
	fmt.Printf("\n| %d MB SIF, uid %d, medians of %d | MB/s | of the local file | of curl |\n|---|---|---|---|\n", size/1e6, os.Getuid(), figuresRounds)
	for _, name := range names {
		m := median(figures[name])
		fmt.Printf("| %s | %.0f | %.2f | %.2f |\n", name[2:], m, m/base, m/curl)
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// settle waits until the image is verified and kept.
func (s *site) settle(path string) {
	s.t.Helper()
	for range 1000 {
		if out, _ := s.try("getfattr", "--absolute-names", "--only-values", "-n", "user.sregistry.cached", path); out == "yes" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Error("the image was not kept")
}
