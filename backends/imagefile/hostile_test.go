package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
)

// allocated gives how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestBombs: blocks that expand to far more than a block may are refused
// without being expanded.
func TestBombs(t *testing.T) {
	const limit = 8192
	zeros := make([]byte, 8<<20)
	pack := func(open func(io.Writer) (io.WriteCloser, error)) []byte {
		t.Helper()
		var b bytes.Buffer
		w, err := open(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	bigLzma := []byte{0x5d, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0}
	lz4Block := make([]byte, lz4.CompressBlockBound(len(zeros)))
	n, err := lz4.CompressBlock(zeros, lz4Block, nil)
	if err != nil {
		t.Fatal(err)
	}
	// 18 literals, then a match whose length goes on for as long as there are zeros.
	lzoBlock := append(append([]byte{17 + 18}, make([]byte, 18)...), append([]byte{32}, make([]byte, 1<<20)...)...)
	for _, tc := range []struct {
		name string
		c    compression
		src  []byte
	}{
		{"gzip", compGzip, pack(func(w io.Writer) (io.WriteCloser, error) { return zlib.NewWriter(w), nil })},
		{"xz", compXz, pack(func(w io.Writer) (io.WriteCloser, error) { return xz.WriterConfig{DictCap: 1 << 16}.NewWriter(w) })},
		{"xz with a large dictionary", compXz, pack(func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })},
		{"lzma", compLzma, pack(func(w io.Writer) (io.WriteCloser, error) { return lzma.WriterConfig{DictCap: 1 << 16}.NewWriter(w) })},
		{"lzma with a large dictionary", compLzma, bigLzma},
		{"zstd", compZstd, pack(func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })},
		{"zstd that states its size", compZstd, encodeZstd(t, zeros)},
		{"lz4", compLz4, lz4Block[:n]},
		{"lzo", compLzo, lzoBlock},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var err error
			if n := allocated(func() { _, err = tc.c.decompress(tc.src, limit) }); n > 4<<20 {
				t.Errorf("%d bytes allocated", n)
			}
			if !errors.Is(err, backends.Corrupt) {
				t.Errorf("%v", err)
			}
		})
	}
}

func encodeZstd(t *testing.T, b []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(b, nil)
}

// TestLies patches sizes in an image's uncompressed inodes: work and memory
// stay bounded whatever they claim.
func TestLies(t *testing.T) {
	const length = 12_345
	in := imagetest.Inspect{Runscript: strings.Repeat("x", length)}
	path := imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Inspect: &in, MkfsArgs: []string{"-noI"}})
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	q, err := parseSquash(image[:squashHeaderLen], 0)
	if err != nil {
		t.Fatal(err)
	}
	size := binary.LittleEndian.AppendUint32(nil, length)
	at := int(q.inodeTable) + bytes.Index(image[q.inodeTable:], size)
	for name, patch := range map[string]func(b []byte){
		"size":          func(b []byte) { binary.LittleEndian.PutUint32(b[at:], 0xFFFFFFFF) },
		"fragment":      func(b []byte) { binary.LittleEndian.PutUint32(b[at-8:], 77) },
		"offset":        func(b []byte) { binary.LittleEndian.PutUint32(b[at-4:], 0xFFFFFFF0) },
		"all of blocks": func(b []byte) { binary.LittleEndian.PutUint64(b[at-12:], 0xFFFFFFFF_FFFFFFFF) },
		"root":          func(b []byte) { binary.LittleEndian.PutUint64(b[32:], 0xFFFFFFFF_FFFFFFFF) },
		"root far":      func(b []byte) { binary.LittleEndian.PutUint64(b[32:], 0x7FFF_FFFF_0000) },
		"frag table":    func(b []byte) { binary.LittleEndian.PutUint64(b[q.fragTable:], 1<<63) },
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(image)
			patch(b)
			var err error
			if n := allocated(func() { _, err = ReadInspect(t.Context(), bytes.NewReader(b), int64(len(b))) }); n > 16<<20 {
				t.Errorf("%d bytes allocated", n)
			}
			if !errors.Is(err, backends.Corrupt) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestSpendBound: an image that makes its reader expand much, block after
// block, is given up on.
func TestSpendBound(t *testing.T) {
	files := map[string]string{}
	for i := range 70 {
		files[".singularity.d/env/9"+string(rune('A'+i))+"-environment.sh"] = strings.Repeat("x", MaxValue/2)
	}
	path := imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Files: files})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := newSource(t.Context(), bytes.NewReader(b), int64(len(b)))
	q, err := parseSquash(b[:squashHeaderLen], 0)
	if err != nil {
		t.Fatal(err)
	}
	r := newSquashReader(s, q)
	if _, err := inspectSquashfs(r); err != nil { // stops when the value is full
		t.Fatal(err)
	}
	if err := r.spend(maxExpanded); !errors.Is(err, backends.Corrupt) {
		t.Errorf("spent %d: %v", r.spent, err)
	}
	if r.spent-maxExpanded > 8<<20 {
		t.Errorf("spent %d bytes on values of one MiB", r.spent-maxExpanded)
	}
}

// TestLzoInstructions covers the instructions that mksquashfs's encoder seldom
// chooses: the short matches, whose meaning depends on what came before.
func TestLzoInstructions(t *testing.T) {
	text := make([]byte, 17+2100)
	for i := range text {
		text[i] = byte(i * i >> 3)
	}
	var src []byte
	put := func(b ...byte) { src = append(src, b...) }
	// A run of 2117 literals: 3 + 15 + 255·8 + 59.
	put(append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0}, 59)...)
	put(text...)
	put(1<<2|2, 5) // after literals: 3 bytes from 5<<2 + 1 + 2049 back, then 2 literals
	put('y', 'z')
	put(3<<2, 7)  // after a match with literals: 2 bytes from 7<<2 + 3 + 1 back
	put(17, 0, 0) // the end
	want := bytes.Clone(text)
	want = append(want, want[len(want)-2070:][:3]...)
	want = append(want, "yz"...)
	want = append(want, want[len(want)-32:][:2]...)
	got, err := unlzo(src, len(want))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v; ends in %q, not %q", err, got[max(0, len(got)-8):], want[len(want)-8:])
	}
	for n := range src {
		if _, err := unlzo(src[:n], len(want)); err == nil {
			t.Fatalf("%d of %d bytes are enough", n, len(src))
		}
	}
	if _, err := unlzo(src, len(want)-1); err == nil {
		t.Error("more than the limit")
	}
}
