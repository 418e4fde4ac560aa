/* texts.h: files of the source tree that the program carries with it, as zero-terminated strings. */
#ifndef TOOLS_TEXTS_H
#define TOOLS_TEXTS_H

extern const char text_prose[]; /* the haystack */
extern const char text_style[]; /* of the report's page */

#endif
