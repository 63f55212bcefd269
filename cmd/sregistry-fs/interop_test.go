//go:build interop

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest/pyclient"
)

// TestPythonClientAndMount: what the published Python client pushes is read
// through our mount, and it pulls what was copied into our mount.
func TestPythonClientAndMount(t *testing.T) {
	s := newSite(t, registrytest.Options{DeleteWorks: true})
	theirs := pyclient.New(t, pyclient.Install(t), s.srv.URL, testUser, testToken)
	dir := t.TempDir()
	first := readImage(t, imagetest.SIF(t, dir, imagetest.Options{PadMB: 3}))
	path := imagetest.Squashfs(t, dir, imagetest.Options{LaunchLine: true})
	second := readImage(t, path)

	theirs.Run("push", "--name", "registry://dino/tacos:v1", theirs.File("first.sif", first))
	s.mount()
	s.same(s.path("dino/tacos:v1.simg"), first)

	s.run("cp", path, s.path("dino/salad:2.simg"))
	theirs.Run("pull", "--name", "pulled.sif", "--no-cache", "registry://dino/salad:2")
	if got := readImage(t, filepath.Join(theirs.Home, "pulled.sif")); !bytes.Equal(got, second) {
		t.Error("it pulled other bytes than were copied in")
	}

	theirs.Run("delete", "--force", "registry://dino/tacos:v1")
	s.run(s.bin, "refresh", s.mnt)
	if _, err := os.Stat(s.path("dino/tacos:v1.simg")); !os.IsNotExist(err) {
		t.Errorf("what it deleted is still here: %v", err)
	}
	s.run("rm", s.path("dino/salad:2.simg"))
	if out, err := theirs.Try("pull", "--name", "gone.sif", "--no-cache", "registry://dino/salad:2"); err == nil {
		t.Errorf("it pulls what was removed: %s", out)
	}
}
