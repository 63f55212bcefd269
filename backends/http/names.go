package httpindex

import (
	"slices"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

// suffixes are those of image files, the one that counts first; a file with a
// tag may have none.
func suffixes() []string { return []string{backends.Suffix, ".sif", ".img"} }

// beside lists what people lay next to an image under its name.
func beside() []string {
	return []string{
		".md5", ".sha1", ".sha256", ".sha512", ".asc", ".sig", ".txt", ".json", ".html", ".yml", ".yaml", ".log", ".def", ".recipe",
		".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".torrent", ".tmp", ".part", "~",
	}
}

// imageOf reads a file's name; ok is false for what is no image.
func imageOf(name string) (image, tag string, ok bool) {
	if strings.HasPrefix(name, ".") {
		return "", "", false
	}
	for _, suffix := range suffixes() {
		if base, found := strings.CutSuffix(name, suffix); found {
			image, tag, tagged := strings.Cut(base, ":")
			if !tagged {
				return image, backends.DefaultTag, image != ""
			}
			return image, tag, image != "" && tag != ""
		}
	}
	if slices.ContainsFunc(beside(), func(s string) bool { return strings.HasSuffix(name, s) }) {
		return "", "", false
	}
	image, tag, _ = strings.Cut(name, ":")
	return image, tag, image != "" && tag != ""
}

// refOf reads a path relative to the base: the image it is, if it is one.
func refOf(path string) (backends.Ref, bool) {
	collection, name := backends.DefaultCollection, path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		collection, name = path[:i], path[i+1:]
	}
	image, tag, ok := imageOf(name)
	return backends.Ref{Collection: collection, Image: image, Tag: tag}, ok
}

// candidates gives the paths, relative to the base, of the files that could
// hold ref. The order says which one counts if there are several.
func candidates(ref backends.Ref) []string {
	var names, paths []string
	for _, suffix := range suffixes() {
		names = append(names, ref.Image+":"+ref.Tag+suffix)
	}
	if name := ref.Image + ":" + ref.Tag; isSpelling(name, ref) {
		names = append(names, name)
	}
	if ref.Tag == backends.DefaultTag {
		for _, suffix := range suffixes() {
			names = append(names, ref.Image+suffix)
		}
	}
	for _, dir := range dirs(ref.Collection) {
		for _, name := range names {
			paths = append(paths, dir+name)
		}
	}
	return paths
}

// isSpelling reports whether the file name reads back as ref's image: "a:1.sif" is
// the tag 1 and not 1.sif.
func isSpelling(name string, ref backends.Ref) bool {
	image, tag, ok := imageOf(name)
	return ok && image == ref.Image && tag == ref.Tag
}

// dirs gives the directories of a collection, relative to the base and
// ending in "/" (the base itself is ""), the one that counts first.
func dirs(collection string) []string {
	if collection == backends.DefaultCollection {
		return []string{collection + "/", ""}
	}
	return []string{collection + "/"}
}

// found is what the index shows of one image.
type found struct {
	path string
	form int // its place in candidates(ref)
	row  row
}

// pick adds a file to found, unless one that counts first is there for the
// same image.
func pick(images map[backends.Ref]found, path string, r row) {
	ref, ok := refOf(path)
	if !ok {
		return
	}
	form := slices.Index(candidates(ref), path)
	if had, twice := images[ref]; form < 0 || twice && had.form <= form {
		return
	}
	images[ref] = found{path: path, form: form, row: r}
}
