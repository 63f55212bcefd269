package imagefile_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
)

func load(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func identify(t testing.TB, b []byte) imagefile.Info {
	t.Helper()
	info, err := imagefile.Identify(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	checkTables(t, info, int64(len(b)))
	return info
}

func checkTables(t testing.TB, info imagefile.Info, size int64) {
	t.Helper()
	last := int64(0)
	for _, e := range info.Tables {
		if e.Off < last {
			t.Fatalf("tables out of order: %+v", info.Tables)
		}
		last = e.Off
		if e.Off < 0 || e.Len <= 0 || e.Off+e.Len > size {
			t.Fatalf("table %+v lies outside %d bytes", e, size)
		}
	}
	if info.Complete && (info.Need < 0 || info.Need > size) {
		t.Fatalf("complete at %d bytes, but needs %d", size, info.Need)
	}
}

func superblock(b []byte, base int64) (used, inodes int64) {
	return int64(binary.LittleEndian.Uint64(b[base+40:])), int64(binary.LittleEndian.Uint64(b[base+64:]))
}

func TestSquashfs(t *testing.T) {
	for _, comp := range []string{"gzip", "xz", "zstd", "lz4", "lzo", "lzma"} {
		for _, launch := range []bool{false, true} {
			t.Run(comp, func(t *testing.T) {
				b := load(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Compression: comp, LaunchLine: launch}))
				info := identify(t, b)
				base := int64(0)
				if launch {
					base = int64(len(imagetest.LaunchLine))
				}
				used, inodes := superblock(b, base)
				if info.Kind != imagefile.Squashfs || !info.Complete || info.Compression != comp || info.Offset != base || info.Need != base+used {
					t.Errorf("%+v", info)
				}
				last := info.Tables[len(info.Tables)-1]
				if last.Off > base+inodes || last.Off+last.Len != base+used {
					t.Errorf("tables %+v do not span %d to %d", info.Tables, base+inodes, base+used)
				}
			})
		}
	}
}

func TestSIF(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "riscv64"} {
		b := load(t, imagetest.SIF(t, t.TempDir(), imagetest.Options{Arch: arch, Compression: "zstd"}))
		info := identify(t, b)
		if info.Kind != imagefile.SIF || !info.Complete || info.Arch != arch || info.Compression != "zstd" || info.Need != int64(len(b)) {
			t.Errorf("%+v", info)
		}
		if string(b[info.Offset:][:4]) != "hsqs" {
			t.Errorf("no root at %d", info.Offset)
		}
		if first := info.Tables[0]; first.Off != 0 || first.Len < 48*585 {
			t.Errorf("header and descriptors are not to be prefetched: %+v", info.Tables)
		}
	}
}

func TestEncryptedSIF(t *testing.T) {
	b := load(t, imagetest.SIF(t, t.TempDir(), imagetest.Options{Encrypted: true}))
	if info := identify(t, b); !info.Complete || !info.Encrypted || info.Compression != "" || info.Offset <= 0 {
		t.Errorf("%+v", info)
	}
}

func TestExt3(t *testing.T) {
	for _, launch := range []bool{false, true} {
		b := load(t, imagetest.Ext3(t, t.TempDir(), imagetest.Options{LaunchLine: launch}))
		info := identify(t, b)
		if info.Kind != imagefile.Ext3 || !info.Complete || info.Need != int64(len(b)) {
			t.Errorf("%+v", info)
		}
		if info := identify(t, b[:len(b)-1]); info.Complete || info.Need != int64(len(b)) {
			t.Errorf("one byte short: %+v", info)
		}
	}
}

// TestTruncated cuts small images at every point: never an error, since the
// rest may follow, and complete only when everything promised is there.
func TestTruncated(t *testing.T) {
	dir := t.TempDir()
	small := imagetest.Options{Inspect: &imagetest.Inspect{Runscript: "#!/bin/sh\n"}}
	launched := small
	launched.LaunchLine, launched.Name = true, "launched.simg"
	for name, path := range map[string]string{
		"sif":      imagetest.SIF(t, dir, small),
		"squashfs": imagetest.Squashfs(t, dir, small),
		"launched": imagetest.Squashfs(t, dir, launched),
	} {
		b := load(t, path)
		whole := identify(t, b)
		for n := range b {
			info := identify(t, b[:n])
			if want := int64(n) >= whole.Need; info.Complete != want {
				t.Fatalf("%s cut at %d of %d (needs %d): %+v", name, n, len(b), whole.Need, info)
			}
			if info.Need > whole.Need {
				t.Fatalf("%s cut at %d needs %d, more than %d", name, n, info.Need, whole.Need)
			}
		}
	}
}

// TestHeaderLast: builders write the header when the rest is there, and
// programs that copy out of order leave holes. Neither is complete.
func TestHeaderLast(t *testing.T) {
	dir := t.TempDir()
	sq := load(t, imagetest.Squashfs(t, dir, imagetest.Options{LaunchLine: true}))
	clear(sq[len(imagetest.LaunchLine):][:96])
	img := load(t, imagetest.SIF(t, dir, imagetest.Options{}))
	noHeader := bytes.Clone(img)
	clear(noHeader[:128])
	noDescriptors := bytes.Clone(img)
	clear(noDescriptors[4096 : 4096+48*585])
	noRoot := bytes.Clone(img)
	clear(noRoot[identify(t, img).Offset:])
	for name, b := range map[string][]byte{
		"empty": nil, "zeros": make([]byte, 100_000), "squashfs": sq,
		"sif without header": noHeader, "sif without descriptors": noDescriptors, "sif without root": noRoot,
	} {
		if info := identify(t, b); info.Complete || info.Need != -1 {
			t.Errorf("%s: %+v", name, info)
		}
	}
}

func TestTooShortToTell(t *testing.T) {
	for _, s := range []string{
		"", "#", "#!/usr/bin/env run", imagetest.LaunchLine, imagetest.LaunchLine + "hs",
		imagetest.LaunchLine + "\x00SIF_MA", "hs", "hsq", string(make([]byte, 40)), string(make([]byte, 32)) + "SIF",
	} {
		if info := identify(t, []byte(s)); info.Kind != imagefile.Unknown || info.Complete || info.Need != -1 {
			t.Errorf("%q: %+v", s, info)
		}
	}
}

func TestNoImage(t *testing.T) {
	dir := t.TempDir()
	sq := load(t, imagetest.Squashfs(t, dir, imagetest.Options{}))
	old := bytes.Clone(sq)
	old[28] = 3
	comp := bytes.Clone(sq)
	comp[20] = 9
	table := bytes.Clone(sq)
	binary.LittleEndian.PutUint64(table[64:], 1<<60)
	used := bytes.Clone(sq)
	binary.LittleEndian.PutUint64(used[40:], 1<<63)
	img := load(t, imagetest.SIF(t, dir, imagetest.Options{}))
	count := bytes.Clone(img)
	binary.LittleEndian.PutUint64(count[88:], 1<<40)
	negative := bytes.Clone(img)
	binary.LittleEndian.PutUint64(negative[96:], 1<<63)
	object := bytes.Clone(img)
	binary.LittleEndian.PutUint64(object[4096+25:], 1<<63-1)
	for name, b := range map[string][]byte{
		"text": []byte("hello\n"), "script": []byte("#!/bin/sh\n" + string(bytes.Repeat([]byte("echo\n"), 100))),
		"gzip": []byte("\x1f\x8b\x08\x00\x00"), "launch line, then text": []byte(imagetest.LaunchLine + "hello"),
		"squashfs 3": old, "compressor": comp, "table": table, "bytes used": used,
		"descriptor count": count, "descriptor offset": negative, "object size": object,
	} {
		info, err := imagefile.Identify(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, backends.Invalid) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

// TestPartitionCutShort: a SIF whose partition promises less than the file
// system in it needs.
func TestPartitionCutShort(t *testing.T) {
	b := load(t, imagetest.SIF(t, t.TempDir(), imagetest.Options{PadMB: 1}))
	at := identify(t, b).Offset
	for _, d := range [][]byte{b[4096:], b[4096+585:], b[4096+2*585:]} {
		if int64(binary.LittleEndian.Uint64(d[17:])) == at {
			binary.LittleEndian.PutUint64(d[25:], 8192)
		}
	}
	if info := identify(t, b); info.Complete || info.Need != -1 {
		t.Errorf("as long as before: %+v", info)
	}
	used, _ := superblock(b, at)
	if info := identify(t, b[:at+8192]); info.Complete || info.Need != at+used {
		t.Errorf("cut: %+v, not %d", info, at+used)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestReadErrors(t *testing.T) {
	stale := backends.Errorf("read", backends.Ref{}, backends.Stale, "moved")
	if _, err := imagefile.Identify(failing{stale}, 4096); backends.KindOf(err) != backends.Stale {
		t.Errorf("the reader's error is lost: %v", err)
	}
	if _, err := imagefile.Identify(failing{io.EOF}, 4096); backends.KindOf(err) != backends.Corrupt {
		t.Errorf("a file shorter than its size: %v", err)
	}
}

// header is a file of any size that starts with some bytes.
type header []byte

func (h header) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(h)) {
		copy(p, h[off:])
	}
	return len(p), nil
}

// TestManyDescriptors: a count that fits a huge file is still not believed.
func TestManyDescriptors(t *testing.T) {
	b := load(t, imagetest.SIF(t, t.TempDir(), imagetest.Options{}))[:4096]
	binary.LittleEndian.PutUint64(b[88:], 1<<20)
	binary.LittleEndian.PutUint64(b[104:], 585<<20)
	c := &counting{r: header(b)}
	if _, err := imagefile.Identify(c, 1<<50); !errors.Is(err, backends.Invalid) || c.bytes > 1<<20 {
		t.Errorf("%v after %d bytes", err, c.bytes)
	}
}

func FuzzIdentify(f *testing.F) {
	dir := f.TempDir()
	f.Add([]byte(imagetest.LaunchLine))
	f.Add(load(f, imagetest.SIF(f, dir, imagetest.Options{})))
	f.Add(load(f, imagetest.Squashfs(f, dir, imagetest.Options{LaunchLine: true})))
	f.Add(load(f, imagetest.Ext3(f, dir, imagetest.Options{}))[:4096])
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := imagefile.Identify(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			checkTables(t, info, int64(len(b)))
		} else if !errors.Is(err, backends.Invalid) {
			t.Errorf("%v", err)
		}
	})
}
