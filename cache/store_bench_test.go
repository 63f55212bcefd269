package cache

import (
	"io"
	"testing"
)

// BenchmarkWarmRead reads a verified blob in the sizes the kernel asks for.
func BenchmarkWarmRead(b *testing.B) {
	r := newImage(256 * chunkSize)
	s := openStore(b, b.TempDir(), r.ranged())
	blob := mustOpen(b, s, r.rec())
	defer blob.Close()
	mustWait(b, blob)
	p := make([]byte, chunkSize)
	b.SetBytes(chunkSize)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := blob.ReadAt(b.Context(), p, int64(i%256)*chunkSize); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkColdSequential copies an image that is not here, from a registry
// that answers at once: what remains is the store's own work.
func BenchmarkColdSequential(b *testing.B) {
	for _, plain := range []bool{false, true} {
		name := "ranges"
		if plain {
			name = "plain"
		}
		b.Run(name, func(b *testing.B) {
			r := newImage(2048 * chunkSize)
			set := r.ranged()
			if plain {
				set = r.plain()
			}
			b.SetBytes(int64(len(r.data)))
			p := make([]byte, chunkSize)
			for b.Loop() {
				b.StopTimer()
				s := openStore(b, b.TempDir(), set)
				b.StartTimer()
				blob := mustOpen(b, s, r.rec())
				for off := int64(0); off < blob.Size(); off += chunkSize {
					if _, err := blob.ReadAt(b.Context(), p, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				blob.Close()
				closeStore(b, s)
				b.StartTimer()
			}
		})
	}
}
