package dir

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/sregistry/sregistry-fs/backends"
)

// suffixes are those of image files. The order decides between files that
// claim one ref, and never changes: a tag in the name before none, and then the
// suffix that comes first here.
func suffixes() []string { return []string{backends.Suffix, ".sif", ".img"} }

// parse reads the name of an image file. rank orders files of the same ref; the
// lowest is the image. Names of other files are not ok.
func parse(name string) (image, tag string, rank int, ok bool) {
	if strings.HasPrefix(name, ".") {
		return "", "", 0, false
	}
	for i, suffix := range suffixes() {
		base, found := strings.CutSuffix(name, suffix)
		if !found {
			continue
		}
		image, tag, tagged := strings.Cut(base, ":")
		if !tagged {
			return image, backends.DefaultTag, len(suffixes()) + i, image != ""
		}
		return image, tag, i, image != "" && tag != ""
	}
	return "", "", 0, false
}

// candidates gives the paths, relative to the folder, of the files that
// could hold ref, the one that counts first.
func candidates(ref backends.Ref) []string {
	var names []string
	for _, suffix := range suffixes() {
		names = append(names, ref.Image+":"+ref.Tag+suffix)
	}
	if ref.Tag == backends.DefaultTag {
		for _, suffix := range suffixes() {
			names = append(names, ref.Image+suffix)
		}
	}
	var paths []string
	for _, folder := range folders(ref.Collection) {
		for _, name := range names {
			paths = append(paths, path.Join(folder, name))
		}
	}
	return paths
}

// folders gives the folders that hold a collection's images, the one that counts
// first: "library" is two.
func folders(collection string) []string {
	if collection == backends.DefaultCollection {
		return []string{backends.DefaultCollection, "."}
	}
	return []string{collection}
}

// file is an image file that is there.
type file struct {
	path string // relative to the folder
	info fs.FileInfo
}

// find gives the files that claim ref, the one that counts first, or
// NotFound. Only regular files count, and links to them within the folder.
func find(root *os.Root, op string, ref backends.Ref) ([]file, error) {
	var found []file
	for _, p := range candidates(ref) {
		info, err := root.Stat(p)
		if err == nil && info.Mode().IsRegular() {
			found = append(found, file{p, info})
		}
		if err != nil {
			if e := fault(op, ref, err); e.Kind != backends.NotFound {
				return nil, e
			}
		}
	}
	if len(found) == 0 {
		return nil, &backends.Error{Op: op, Ref: ref, Kind: backends.NotFound}
	}
	return found, nil
}

// image gives the file that counts for ref, or NotFound.
func image(root *os.Root, op string, ref backends.Ref) (file, error) {
	found, err := find(root, op, ref)
	if err != nil {
		return file{}, err
	}
	return found[0], nil
}

// record tells of an image file all that there is to tell.
func record(ref backends.Ref, info fs.FileInfo) backends.Record {
	return backends.Record{
		Ref:     ref,
		Version: version(info),
		Size:    info.Size(),
		Created: info.ModTime(),
		Frozen:  info.Mode().Perm()&0o222 == 0,
		Full:    true,
	}
}

// version changes whenever the bytes do: it is made of the file's inode,
// size, and times of change. It changes a little too often, too: a rename, a new
// hard link or a chmod sets the inode's time. A change within the file
// system's clock tick (a few milliseconds at most) that keeps the length
// and is made in place goes unseen.
func version(info fs.FileInfo) string {
	st := info.Sys().(*syscall.Stat_t)
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %d", st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()))
	return hex.EncodeToString(sum[:16])
}
